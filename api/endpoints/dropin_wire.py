"""Request bodies and answer formats of the APIs of Ollama, OpenAI and Anthropic. Pure.

Bodies are read with any content type. A body whose every field is understood is a question that may be compared by
meaning. Any other goes to Ollama as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    body_in_turn,
    errors_of,
    refuse_too_many_values,
    refused,
)
from api.errors import InvalidRequest, RagherdError, UpstreamError, UpstreamFault
from api.ports.question import AnswerFinished, AnswerStarted
from api.values import Token, Usage, utf8_size

EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
MAX_MESSAGES: Final = 1000
MAX_PARTS: Final = 100
"""In a message."""
MAX_INPUTS: Final = 10_000
"""Texts in a request. The smaller EMBED_MAX_INPUTS applies."""

MAX_DIMENSIONS: Final = 65_536
"""Of a vector. No model has as many."""

MessageLimit = Field(max_length=MAX_MESSAGES, fail_fast=True)
"""Limits a list of messages."""
Inputs = Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), IsText, IsVisible]

_EMPTY_VALUES: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
"""Values that clients send instead of omitting a field."""
_TRUE_BY_DEFAULT: Final = frozenset({"truncate", "shift"})
"""Ollama's fields whose omission means true."""


def describe_empty_values(schema: dict[str, Any]) -> None:
    """Adds to the schema what `without_empty_fields` accepts."""
    for name, value in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = _or_null(value)
    schema["additionalProperties"] = {"enum": list(_EMPTY_VALUES)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("anyOf", [])
    takes_any = not schema.keys() - {"title", "default", "description"}
    if takes_any or {"type": "null"} in kinds:
        return schema
    about = {name: value for name, value in schema.items() if name in {"title", "default", "description"}}
    kinds = kinds or [{name: value for name, value in schema.items() if name not in about}]
    return {"anyOf": [*kinds, {"type": "null"}], **about}


class LenientBody(StrictBody):
    """A body, or an object in one, that ignores nulls and unknown fields with an empty value.

    Other unknown fields are not valid: an answer that ignored one would be wrong, and would be cached.
    """

    model_config = ConfigDict(json_schema_extra=describe_empty_values)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, given: Any) -> Any:
        return without_empty_fields(given, cls) if isinstance(given, dict) else given


class ModelBody(LenientBody):
    """A body with a model name."""

    model: ModelName


class ForwardedBody(BaseModel):
    """A body that is forwarded: a model name, and the fields that Ollama has for the path."""

    model_config = ConfigDict(extra="allow")

    model: ModelName


MAX_FIELDS: Final = 1_000
"""Top-level fields of a body. No API of these has fifty."""
AnyBody = TypeVar("AnyBody", bound=BaseModel)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """Reads and validates the body of a request. Raises `InvalidRequest`."""
    return parsed(await read_fields(request), kind)


async def read_fields(request: Request) -> dict[str, Any]:
    """Reads the body of a request, a JSON object. Raises `InvalidRequest`."""
    raw = await body_in_turn(request)
    refuse_too_many_values(raw)
    try:
        fields = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("missing request body: send a JSON object")
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"The body has more than {MAX_FIELDS} fields.")
    return fields


def parsed(fields: dict[str, Any], kind: type[AnyBody], display_name: Callable[[str], str] = str) -> AnyBody:
    """Raises `InvalidRequest` for an invalid or unsupported field. `display_name` maps a field to the sender's name."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # If a field accepts several types, the deepest fault belongs to the intended type.
        fault = max(errors_of(error), key=lambda fault: (len(fault["loc"]), fault["type"] not in _WRONG_TYPE))
    place = ".".join(str(part) for part in fault["loc"] if not _is_type(part))
    message = _MESSAGES.get(fault["type"]) or str(fault["msg"])
    raise refused(display_name(place), message)


def _is_type(part: str | int) -> bool:
    """Returns whether a part of a location is pydantic's name of a union member."""
    return isinstance(part, str) and (part in {"str", "constrained-str"} or part.startswith("list["))


_WRONG_TYPE: Final = {"string_type", "list_type"}
_MESSAGES: Final = {
    "extra_forbidden": "is not supported here",
    "missing": "is required",
    "string_too_short": "is required",
}


def without_empty_fields(fields: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Returns `fields` without nulls and without unknown empty fields, such as `tools: []`.

    Keeps the first of the other unknown fields, because one error is reported.
    """
    known = kind.model_fields
    given = {name: fields[name] for name in known if fields.get(name) is not None}
    unknown = (name for name, value in fields.items() if name not in known and not _says_nothing(name, value))
    return {**given, **{name: fields[name] for name in islice(unknown, 1)}}


def _says_nothing(name: str, value: Any) -> bool:
    if name in _TRUE_BY_DEFAULT:
        return value is True or value is None
    return value in _EMPTY_VALUES


Ignored = Annotated[Any, Field(exclude=True)]
"""A field that is accepted and has no effect."""


def _options_schema() -> dict[str, Any]:
    schema = Options.model_json_schema()
    describe_empty_values(schema)
    return schema


GivenOptions = Annotated[dict[str, Any], Field(max_length=64), WithJsonSchema(_options_schema())]
"""Ollama's `options`. `dropin.allowed_options` validates them, because a setting decides which are accepted."""


_LINE_ENDS: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
"""Not line ends to the standard, but to Python's `splitlines`, which some clients use."""


def single_line(data: Any) -> str:
    """Returns JSON without any kind of line end."""
    return orjson.dumps(data).decode().translate(_LINE_ENDS)


class StreamForm(Protocol):
    """Encodes the events of a stream. A method returns empty bytes if the format has nothing for an event."""

    @property
    def media_type(self) -> str: ...

    @property
    def heartbeat(self) -> bytes | None: ...

    def started(self, started: AnswerStarted) -> bytes: ...

    def token(self, token: Token) -> bytes: ...

    def done(self, answered: AnswerFinished) -> bytes: ...

    def error(self, error: RagherdError) -> bytes: ...


class AnswerForm(StreamForm, Protocol):
    """Also encodes a buffered answer."""

    def buffered(self, answered: AnswerFinished) -> Mapping[str, Any]: ...


class ForwardedForm:
    """An `AnswerForm` that passes on what Ollama sent. `error_line` encodes an error in the middle of a stream."""

    def __init__(self, media_type: str, error_line: Callable[[RagherdError], bytes]) -> None:
        self.media_type = media_type
        self.heartbeat: bytes | None = b": ping\n\n" if media_type == EVENT_STREAM else None
        self._error_line = error_line

    def started(self, started: AnswerStarted) -> bytes:
        return b""

    def token(self, token: Token) -> bytes:
        return token.text.encode()

    def done(self, answered: AnswerFinished) -> bytes:
        return b""

    def error(self, error: RagherdError) -> bytes:
        return self._error_line(error)


def usage_of(answered: AnswerFinished) -> Usage:
    """Returns the tokens of the answer, even if a cached answer cost none: clients of other APIs count by them."""
    if answered.match is not None:
        return answered.match.answer.usage
    return answered.completed.usage if answered.completed is not None else answered.usage


def thinking_of(answered: AnswerFinished) -> str:
    """Returns the model's thoughts before this answer; empty for shared and cached answers."""
    generation = answered.completed.generation if answered.completed is not None else None
    return generation.thinking if generation is not None else ""


def done_reason(answered: AnswerFinished, options: Mapping[str, Any]) -> str:
    """Returns `stop` or `length`. The cache does not store it, but only an answer cut by the caller's limit is that
    long.
    """
    if answered.completed is not None:
        return answered.completed.done_reason
    limit = options.get("num_predict")
    return "length" if limit is not None and usage_of(answered).completion_tokens >= limit else "stop"


def dropin_status(error: RagherdError) -> int:
    """Returns the status for an imitated API, where every invalid request is a 400."""
    rejected = isinstance(error, UpstreamError) and error.fault is UpstreamFault.REQUEST_REJECTED
    return 400 if rejected or error.status == 422 else error.status


class AnthropicErrors:
    """The errors of Anthropic's Messages API. Its requests and answers are forwarded unread."""

    PATH: Final = "/v1/messages"

    _TYPES: Final = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }

    @classmethod
    def owns_path(cls, path: str) -> bool:
        """Returns whether a path belongs to this API."""
        return path == cls.PATH or path.startswith(f"{cls.PATH}/")

    @classmethod
    def error_body(cls, error: RagherdError) -> dict[str, Any]:
        """Returns an error as a document or as an event."""
        kind = cls._TYPES.get(dropin_status(error), "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.detail}}

    @classmethod
    def error_line(cls, error: RagherdError) -> bytes:
        """Returns an error as the last event of a stream."""
        return f"event: error\ndata: {single_line(cls.error_body(error))}\n\n".encode()


# -- the size of a prompt --------------------------------------------------------------------------------------------


def tokens_in(fields: Mapping[str, Any], body: bytes) -> int:
    """About how many tokens the prompt of a forwarded request has, rather too many: three bytes each.

    Images do not count, unless the body has too many parts to look for them. The numbers in `context` are tokens.
    """
    context = fields.get("context")
    tokens = len(context) if isinstance(context, list) else 0
    try:
        return tokens + sum(map(utf8_size, _texts_in(fields))) // 3
    except _TooManyParts:
        return max(tokens, len(body) // 3)


_BINARY: Final = frozenset({"data", "image_url", "images", "url"})
"""Fields of Ollama's, OpenAI's and Anthropic's messages that hold images."""
_TOOLS: Final = frozenset({"arguments", "tool_calls", "tools"})
"""Fields in which the model reads every text, whatever it is called."""


_MAY_HOLD_TEXT: Final = frozenset({str, dict, list})
"""Types of decoded JSON."""
_MOST_PARTS: Final = 30_000
"""Fields and entries of lists that are looked at, in 5 ms. A body may have half a million."""


class _TooManyParts(Exception):
    """A body has more fields and entries than are looked at."""


def _texts_in(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yields the texts in the fields of a request, however deep, but not its images. Raises `_TooManyParts`."""
    left: list[tuple[Any, bool]] = [(fields, False)]
    parts = 0
    while left:
        found, is_tool = left.pop()
        if type(found) is str:
            yield found
            continue
        parts += len(found)
        if parts > _MOST_PARTS:
            raise _TooManyParts
        if type(found) is list:
            left += [(part, is_tool) for part in found if type(part) in _MAY_HOLD_TEXT]
            continue
        for name, value in found.items():
            if type(value) in _MAY_HOLD_TEXT and not (found is fields and name == "context"):
                # Anthropic's calls of tools have their arguments in `input`.
                reads_all = is_tool or name in _TOOLS or (name == "input" and type(value) is dict)
                if reads_all or name not in _BINARY:
                    left.append((value, reads_all))
