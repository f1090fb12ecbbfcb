"""The forms in which an answer leaves: each API that we speak has one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson

from api.errors import RagherdError, UpstreamError
from api.faults import UpstreamFault
from api.model import Token, Usage
from api.query.answered import Answered, Opening

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

    def opening(self, opening: Opening) -> bytes: ...

    def token(self, token: Token) -> bytes: ...

    def done(self, answered: Answered) -> bytes: ...

    def error(self, error: RagherdError) -> bytes: ...


class AnswerForm(StreamForm, Protocol):
    """A form of whole answers too."""

    def whole(self, answered: Answered) -> Mapping[str, Any]: ...


def usage_of(answered: Answered) -> Usage:
    """The tokens of the answer, also where it cost none: clients of other APIs count by them."""
    if answered.match is not None:
        return answered.match.answer.usage
    return answered.landed.usage if answered.landed is not None else answered.usage


def thinking_of(answered: Answered) -> str:
    """What the model thought before this answer; of a shared or a cached answer it is not known."""
    generation = answered.landed.generation if answered.landed is not None else None
    return generation.thinking if generation is not None else ""


def done_reason(answered: Answered, options: Mapping[str, Any]) -> str:
    """`stop` or `length`. The cache does not keep it: only an answer cut by the caller's own length is as long."""
    if answered.landed is not None:
        return answered.landed.done_reason
    limit = options.get("num_predict")
    return "length" if limit is not None and usage_of(answered).completion_tokens >= limit else "stop"


def dropin_status(error: RagherdError) -> int:
    """The status where we stand in for another API: a request that is wrong is 400 there, whoever finds out."""
    rejected = isinstance(error, UpstreamError) and error.fault is UpstreamFault.REQUEST_REJECTED
    return 400 if rejected or error.status == 422 else error.status
