"""Validates client input in bounded time, with error responses of bounded size.

Errors: pydantic collects all errors before it raises. Unknown fields are therefore cut to a few before it sees them,
lists stop at their first invalid item, and only a few errors are reported.

JSON: a body with very many small lists or objects is refused before it is decoded. Decoding holds the GIL, so a thread
would not help. One MiB of text takes a millisecond to decode; one MiB of empty lists takes 100 ms and creates 350,000
objects for the garbage collector.

Options: the generation options that a caller may set, with their ranges.

Headers: parsed here and not declared to FastAPI, because FastAPI would add the cost of a rare header to every hit.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function
from starlette.datastructures import Headers
from starlette.requests import Request

from api.errors import InvalidRequest
from api.ports.question import CLIENT_HEADER
from api.unicode_text import BLANK, INVISIBLE
from api.values import Priority

MAX_FAULTS: Final = 5
"""Errors in a response."""
MAX_CHARACTERS: Final = 1024 * 1024
"""Of a text without a smaller limit."""
VISIBLE: Final = f"[^{INVISIBLE}]"
"""A pattern for text with a visible character."""
_NAME: Final = 100
_MESSAGE: Final = 300

Fault = dict[str, str]
"""`field` and `message` of an error."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not valid Unicode") from None
    return text


def _visible(text: str) -> str:
    if BLANK.fullmatch(text):
        raise ValueError("has no visible character")
    return text


def _integer(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


class _Visible:
    """Refuses text without a visible character, and adds the pattern to the schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(_visible, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": VISIBLE}


IsText = AfterValidator(_encodable)
IsVisible = _Visible()
IsInteger = BeforeValidator(_integer)
"""An integer in JSON Schema's sense: 2.0 is one. Place it last, so that the schema contains the bounds before it."""
IsBoolean = BeforeValidator(_boolean)
"""For a `Literal`, which otherwise accepts 0 for False and 1 for True."""
Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]

StopText = Annotated[str, StringConstraints(max_length=1000), IsText]
"""A text that ends a generation."""


class StrictBody(BaseModel):
    """A body, or an object in one. Unknown fields are refused by name.

    Declare lists with `max_length` and `fail_fast=True`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, given: Any) -> Any:
        """Drops unknown fields after the first few, because each costs an error."""
        known = cls.model_fields
        if not isinstance(given, dict) or len(given) <= len(known) + MAX_FAULTS:
            return given
        unknown = islice((name for name in given if name not in known), MAX_FAULTS + 1)
        return {name: given[name] for name in (*known, *unknown) if name in given}


Body = TypeVar("Body", bound=BaseModel)


def validated(kind: type[Body], fields: Any, place: str = "") -> Body:
    """Validates `fields`, found at `place` in the body. Raises `InvalidRequest` with the first invalid fields."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(errors_of(error), place) from None


def errors_of(error: ValidationError) -> list[Any]:
    """Returns pydantic's errors without the values, which may be private and large."""
    return error.errors(include_url=False, include_context=False, include_input=False)


def invalid(errors: Sequence[Mapping[str, Any]], place: str = "") -> InvalidRequest:
    """Returns the error that reports the first few of pydantic's errors."""
    faults = [_fault(error, place) for error in errors[:MAX_FAULTS]]
    parts = [": ".join(filter(None, fault.values())) for fault in faults]
    return InvalidRequest("; ".join([*parts, *(["and more"] if len(errors) > MAX_FAULTS else [])]), errors=faults)


def refused(field: str, message: str) -> InvalidRequest:
    """Returns the error for one field."""
    fault = {"field": shortened(field, _NAME), "message": shortened(message, _MESSAGE)}
    return InvalidRequest(": ".join(filter(None, fault.values())), errors=[fault])


def shortened(text: str, max_length: int) -> str:
    """Returns at most `max_length` characters of `text`."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _fault(error: Mapping[str, Any], place: str) -> Fault:
    """Returns the field and what is wrong with it; never the value, which may be private."""
    if error["type"] == "json_invalid":
        return {"field": "", "message": "The body is not valid JSON."}
    if error["type"] == "model_attributes_type" and error["loc"] == ("body",):
        return {"field": "", "message": "Send a JSON object, with Content-Type: application/json."}
    parts = (place, *(part for part in error["loc"] if part not in {"body", "query", "path"}))
    return {"field": _path(parts), "message": shortened(_message(error), _MESSAGE)}


def _path(parts: Iterable[Any]) -> str:
    return shortened(".".join(shortened(str(part), _NAME) for part in parts if part != ""), 2 * _NAME)


def _message(error: Mapping[str, Any]) -> str:
    known = error["type"] != "extra_forbidden"
    return str(error["msg"]).removeprefix("Value error, ") if known else "unknown field"


MAX_CONTAINERS: Final = 10_000
"""Lists and objects in a body. A conversation of 1,000 messages has about 1,000."""
MAX_TOKENS: Final = 100_000
"""Strings, lists and objects in a body with many brackets. Limits the work of counting them."""

_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]', re.DOTALL)
"""A string, terminated or not, or the start of a list or object. Never matches a byte twice."""


def json_of(body: bytes, what: str = "The body", max_containers: int = MAX_CONTAINERS) -> Any:
    """Decodes JSON. Raises `InvalidRequest`; `what` names the text in the error."""
    refuse_too_many_values(body, max_containers)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise refused("", f"{what} is not valid JSON.") from None


def refuse_too_many_values(body: bytes, max_containers: int = MAX_CONTAINERS) -> None:
    """Raises `InvalidRequest` for a body with more lists and objects than any valid request."""
    if body.count(b"[") + body.count(b"{") > max_containers and not _is_within(body, max_containers):
        raise refused("", f"The body has more than {max_containers} lists and objects, or too many strings.")


def _is_within(body: bytes, max_containers: int) -> bool:
    """Counts brackets outside strings, because a document's text may contain many."""
    containers = 0
    for tokens, token in enumerate(_TOKEN.finditer(body)):
        containers += body[token.start()] != ord('"')
        if containers > max_containers or tokens >= MAX_TOKENS:
            return False
    return True


Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A share of the probability: `top_p`, `min_p`."""
Seed = Annotated[int, Field(ge=-(2**31), lt=2**31), IsInteger]
Tokens = Annotated[int, Field(ge=1, le=100_000), IsInteger]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stops = Annotated[list[StopText], Field(max_length=16, fail_fast=True)]


class Options(StrictBody):
    """Ollama's options that a caller may set. Options that make Ollama reload the model are not included."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=1000), IsInteger] | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    num_predict: Tokens | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stops | None = None


class JsonRequest(Request):
    async def json(self) -> Any:
        """Raises `JSONDecodeError` for every kind of invalid JSON. The standard library raises other errors for invalid
        UTF-8, deep nesting or huge numbers, and FastAPI turns those into a 400.
        """
        return orjson.loads(await self.body())


LARGE_BODY: Final = 64 * 1024
"""Bytes from which decoding may take over a millisecond."""


async def body_in_turn(request: Request) -> bytes:
    """The body. Decode it before the next `await`: the turn ends when this returns.

    Large bodies take turns. Decoding a megabyte may take 15 ms, and between two of them the worker goes on with
    requests of others.
    """
    body = await request.body()
    if len(body) > LARGE_BODY:
        async with request.state.worker.large_bodies:
            await asyncio.sleep(0)
    return body


# -- Headers and times -------------------------------------------------------------------------------------------------


def list_header(headers: Headers, name: str) -> str:
    """Returns the whole list, or "". A proxy may add another line (RFC 9110, section 5.3)."""
    return ",".join(headers.getlist(name))


def rfc3339(moment_ms: int) -> str:
    """Formats milliseconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


TIMEOUT_HEADER: Final = "X-Request-Timeout"

TIMEOUT_OPENAPI: Final[dict[str, Any]] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds that the answer may take; then 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


CLIENT_OPENAPI: Final[dict[str, Any]] = {
    "name": CLIENT_HEADER,
    "in": "header",
    "required": False,
    "description": "Names the end user, who then always gets the same variant of an experiment. It is not stored.",
    "schema": {"type": "string"},
}


PRIORITY_HEADER: Final = "X-Ragherd-Priority"
_PRIORITIES: Final = {"interactive": Priority.USER, "batch": Priority.BATCH}

PRIORITY_OPENAPI: Final[dict[str, Any]] = {
    "name": PRIORITY_HEADER,
    "in": "header",
    "required": False,
    "description": "`batch` waits for Ollama behind all interactive requests. Default: what the key allows.",
    "schema": {"type": "string", "enum": list(_PRIORITIES)},
}


def request_priority(headers: Headers) -> Priority | None:
    """Returns the priority that the caller asks for, or None. Raises `InvalidRequest`."""
    given = headers.get(PRIORITY_HEADER)
    if given is None:
        return None
    priority = _PRIORITIES.get(given.strip().lower())
    if priority is None:
        raise refused(PRIORITY_HEADER, "must be `interactive` or `batch`")
    return priority


def request_timeout(headers: Headers) -> float | None:
    """Returns the caller's timeout in seconds, or None. Raises `InvalidRequest`."""
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        message = "must be a number of seconds above 0"
        raise InvalidRequest(f"{TIMEOUT_HEADER}: {message}", errors=[{"field": TIMEOUT_HEADER, "message": message}])
    return seconds
