"""Bodies of the APIs that we stand in for: whatever content type they have, and no field silently left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request

from api.errors import InvalidRequest

ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]

_SAYS_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
"""Values by which clients leave a field out. 0 equals False, and means the same there."""


class Body(BaseModel):
    """A field that is not declared is refused by its name: an answer that ignored it would be wrong, and cached."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ModelBody(Body):
    """A body that names a model."""

    model: ModelName


AnyBody = TypeVar("AnyBody", bound=BaseModel)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """The body of a request. Raises `InvalidRequest`."""
    raw = await request.body()
    try:
        fields = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("missing request body: a JSON object is expected")
    return parsed(fields, kind)


def parsed(fields: dict[str, Any], kind: type[AnyBody], spelled: Callable[[str], str] = str) -> AnyBody:
    """Raises `InvalidRequest` for a field that is wrong or not supported; `spelled`: what its sender calls it."""
    try:
        return kind.model_validate(without_idle(fields, kind))
    except ValidationError as error:
        # Of a field that may be of several types, the deepest fault is of the type that was meant.
        fault = max(error.errors(), key=lambda fault: len(fault["loc"]))
    place = ".".join(str(part) for part in fault["loc"] if not _is_type(part))
    message = _WORDS.get(fault["type"]) or str(fault["msg"])
    raise refused(spelled(place), message)


def refused(field: str, message: str) -> InvalidRequest:
    """The error that names a field."""
    return InvalidRequest(f"{field}: {message}", errors=[{"field": field, "message": message}])


def _is_type(part: str | int) -> bool:
    """Whether a part of a place is pydantic's name for one of several types."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


_WORDS: Final = {
    "extra_forbidden": "is not supported here",
    "missing": "is required",
    "string_too_short": "is required",
}


def without_idle(fields: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Without the nulls, and without what is unknown and says nothing, such as `tools: []`."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and (name in kind.model_fields or value not in _SAYS_NOTHING)
    }


Ignored = Annotated[Any, Field(exclude=True)]
"""A field that may be sent and changes nothing."""
