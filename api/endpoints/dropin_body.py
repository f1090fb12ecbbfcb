"""Bodies of the APIs that we stand in for: whatever content type they have, and no field silently left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema, model_validator
from starlette.requests import Request

from api.endpoints.json_body import refuse_too_many_values
from api.endpoints.options import Options
from api.endpoints.validation import IsText, IsVisible, StrictBody, Text, errors_of, refused
from api.errors import InvalidRequest

MOST_MESSAGES: Final = 1000
MOST_PARTS: Final = 100
"""Of a message."""
MOST_INPUTS: Final = 10_000
"""Texts in one request. EMBED_MAX_INPUTS, which is smaller, decides."""

MOST_DIMENSIONS: Final = 65_536
"""Of a vector; no model has as many."""

Few = Field(max_length=MOST_MESSAGES, fail_fast=True)
"""Messages."""
Inputs = Annotated[list[Text], Field(max_length=MOST_INPUTS, fail_fast=True)]
ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), IsText, IsVisible]

_SAYS_NOTHING: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
"""Values by which clients leave a field out."""


def described(schema: dict[str, Any]) -> None:
    """Puts what `without_idle` lets pass into the schema."""
    for name, value in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = _or_null(value)
    schema["additionalProperties"] = {"enum": list(_SAYS_NOTHING)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("anyOf", [])
    takes_any = not schema.keys() - {"title", "default", "description"}
    if takes_any or {"type": "null"} in kinds:
        return schema
    about = {name: value for name, value in schema.items() if name in {"title", "default", "description"}}
    kinds = kinds or [{name: value for name, value in schema.items() if name not in about}]
    return {"anyOf": [*kinds, {"type": "null"}], **about}


class IdleBody(StrictBody):
    """A body, or an object in one, in which a null, or an unknown field that says nothing, is as good as none.

    An answer that ignored a field would be wrong, and cached: other unknown ones are refused.
    """

    model_config = ConfigDict(json_schema_extra=described)

    @model_validator(mode="before")
    @classmethod
    def _without_idle(cls, given: Any) -> Any:
        return without_idle(given, cls) if isinstance(given, dict) else given


class ModelBody(IdleBody):
    """A body that names a model."""

    model: ModelName


AnyBody = TypeVar("AnyBody", bound=BaseModel)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """The body of a request. Raises `InvalidRequest`."""
    raw = await request.body()
    refuse_too_many_values(raw)
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
        return kind.model_validate(fields)
    except ValidationError as error:
        # Of a field that may be of several types, the deepest fault is of the type that was meant.
        fault = max(errors_of(error), key=lambda fault: (len(fault["loc"]), fault["type"] not in _WRONG_TYPE))
    place = ".".join(str(part) for part in fault["loc"] if not _is_type(part))
    message = _WORDS.get(fault["type"]) or str(fault["msg"])
    raise refused(spelled(place), message)


def _is_type(part: str | int) -> bool:
    """Whether a part of a place is pydantic's name for one of several types."""
    return isinstance(part, str) and (part in {"str", "constrained-str"} or part.startswith("list["))


_WRONG_TYPE: Final = {"string_type", "list_type"}
_WORDS: Final = {
    "extra_forbidden": "is not supported here",
    "missing": "is required",
    "string_too_short": "is required",
}


def without_idle(fields: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Without the nulls, and without what is unknown and says nothing, such as `tools: []`.

    Of what is unknown the first is kept: one error is told.
    """
    known = kind.model_fields
    given = {name: fields[name] for name in known if fields.get(name) is not None}
    unknown = (name for name, value in fields.items() if name not in known and value not in _SAYS_NOTHING)
    return {**given, **{name: fields[name] for name in islice(unknown, 1)}}


Ignored = Annotated[Any, Field(exclude=True)]
"""A field that may be sent and changes nothing."""


def _options_schema() -> dict[str, Any]:
    schema = Options.model_json_schema()
    described(schema)
    return schema


GivenOptions = Annotated[dict[str, Any], Field(max_length=64), WithJsonSchema(_options_schema())]
"""Ollama's `options`. Which are taken depends on a setting: `dropin.allowed_options` decides."""
