"""Bodies of the APIs that we stand in for: whatever content type they have, and no field silently left out.

The forms in which an answer leaves: each API that we speak has one. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Annotated, Any, Final, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema, model_validator
from starlette.requests import Request

from api.endpoints.validation import (
    IsText,
    IsVisible,
    Options,
    StrictBody,
    Text,
    errors_of,
    refuse_too_many_values,
    refused,
)
from api.errors import InvalidRequest, RagherdError, UpstreamError, UpstreamFault
from api.ports.question import AnswerFinished, AnswerStarted
from api.values import Token, Usage

MAX_MESSAGES: Final = 1000
MAX_PARTS: Final = 100
"""Of a message."""
MAX_INPUTS: Final = 10_000
"""Texts in one request. EMBED_MAX_INPUTS, which is smaller, decides."""

MAX_DIMENSIONS: Final = 65_536
"""Of a vector; no model has as many."""

Few = Field(max_length=MAX_MESSAGES, fail_fast=True)
"""Messages."""
Inputs = Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
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


_LINE_ENDS: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
"""No line ends to the standard, but to Python's `splitlines`, by which some clients read."""


def single_line(data: Any) -> str:
    """JSON without a line end, by any reader's reckoning."""
    return orjson.dumps(data).decode().translate(_LINE_ENDS)


class StreamForm(Protocol):
    """How the pieces of a stream are written; empty bytes where a format says nothing there."""

    @property
    def media_type(self) -> str: ...

    @property
    def sign_of_life(self) -> bytes | None: ...

    def opening(self, opening: AnswerStarted) -> bytes: ...

    def token(self, token: Token) -> bytes: ...

    def done(self, answered: AnswerFinished) -> bytes: ...

    def error(self, error: RagherdError) -> bytes: ...


class AnswerForm(StreamForm, Protocol):
    """A form of whole answers too."""

    def whole(self, answered: AnswerFinished) -> Mapping[str, Any]: ...


def usage_of(answered: AnswerFinished) -> Usage:
    """The tokens of the answer, also where it cost none: clients of other APIs count by them."""
    if answered.match is not None:
        return answered.match.answer.usage
    return answered.completed.usage if answered.completed is not None else answered.usage


def thinking_of(answered: AnswerFinished) -> str:
    """What the model thought before this answer; of a shared or a cached answer it is not known."""
    generation = answered.completed.generation if answered.completed is not None else None
    return generation.thinking if generation is not None else ""


def done_reason(answered: AnswerFinished, options: Mapping[str, Any]) -> str:
    """`stop` or `length`. The cache does not keep it: only an answer cut by the caller's own length is as long."""
    if answered.completed is not None:
        return answered.completed.done_reason
    limit = options.get("num_predict")
    return "length" if limit is not None and usage_of(answered).completion_tokens >= limit else "stop"


def dropin_status(error: RagherdError) -> int:
    """The status where we stand in for another API: a request that is wrong is 400 there, whoever finds out."""
    rejected = isinstance(error, UpstreamError) and error.fault is UpstreamFault.REQUEST_REJECTED
    return 400 if rejected or error.status == 422 else error.status
