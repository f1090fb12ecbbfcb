"""Encodes a flight's messages as JSON: text, sources, the end, and errors, which followers raise as the leader did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from api.errors import (
    BackendsDrained,
    BreakerOpen,
    BulkheadFull,
    InternalError,
    PromptTooLong,
    RagherdError,
    UpstreamError,
    UpstreamFault,
    UpstreamResponse,
)
from api.values import CompletedAnswer, Queued, Source, Usage, known, source_of


@dataclass(frozen=True, slots=True)
class TextMessage:
    """Text of an attempt, at an offset of `at` characters."""

    attempt: int
    at: int
    text: str


@dataclass(frozen=True, slots=True)
class SourcesMessage:
    """The sources of an attempt."""

    attempt: int
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class LeaderLeft:
    """The leader leaves, so a follower may take the lead."""


FlightPayload = TextMessage | SourcesMessage | Queued | CompletedAnswer | RagherdError | LeaderLeft


def encode(said: FlightPayload) -> str:
    """Returns the payload as JSON."""
    return orjson.dumps(_plain(said)).decode()


def decode(body: str) -> FlightPayload:
    """Decodes a payload, ignoring unknown fields. Raises `ValueError`, `KeyError` or `TypeError` if it is invalid."""
    fields = orjson.loads(body)
    if not isinstance(fields, dict):
        raise ValueError("no object")
    return _READ[fields.pop("is")](fields)


def _plain(said: FlightPayload) -> dict[str, Any]:
    if isinstance(said, TextMessage):
        return {"is": "piece", **asdict(said)}
    if isinstance(said, SourcesMessage):
        return {"is": "sources", **asdict(said)}
    if isinstance(said, Queued):
        return {"is": "queued", **asdict(said)}
    if isinstance(said, CompletedAnswer):
        return {"is": "landed", **_landed(said)}
    if isinstance(said, LeaderLeft):
        return {"is": "handed_over"}
    return {"is": "error", **_error(said)}


def _landed(completed: CompletedAnswer) -> dict[str, Any]:
    return {
        "text": completed.text,
        "model": completed.model,
        "usage": completed.usage,
        "done_reason": completed.done_reason,
        "sources": completed.sources,
        "entry": completed.entry,
    }


def _read_sources(fields: Mapping[str, Any]) -> tuple[Source, ...]:
    return tuple(source_of(source) for source in fields["sources"])


def _read_landed(fields: Mapping[str, Any]) -> CompletedAnswer:
    sources = _read_sources(fields)
    return known(CompletedAnswer, {**fields, "usage": known(Usage, fields["usage"]), "sources": sources})


def _error(error: RagherdError) -> dict[str, Any]:
    if isinstance(error, UpstreamError):
        fields = {"fault": error.fault.value, "detail": error.detail, "wait": error.retry_after}
        return {"kind": "upstream", **fields, "unreachable": error.unreachable, "verbatim": _verbatim(error)}
    if isinstance(error, PromptTooLong):
        return {"kind": "prompt_too_long", "tokens": error.members["tokens"], "limit": error.members["limit"]}
    if isinstance(error, BackendsDrained):
        return {"kind": "drained", "name": error.members["breaker"]}
    if isinstance(error, BreakerOpen):
        return {"kind": "breaker", "name": error.members["breaker"], "wait": error.retry_after, "forced": error.forced}
    if isinstance(error, BulkheadFull):
        fields = {"name": error.members["bulkhead"], "reason": error.reason, "wait": error.retry_after}
        return {"kind": "bulkhead", **fields}
    return {"kind": "internal"}


def _verbatim(error: UpstreamError) -> dict[str, Any] | None:
    """Returns Ollama's response. Latin-1 maps any byte to a character."""
    said = error.verbatim
    return None if said is None else {**asdict(said), "body": said.body.decode("latin-1")}


def _read_upstream(fields: Mapping[str, Any]) -> UpstreamError:
    error = UpstreamError(
        UpstreamFault(fields["fault"]),
        fields["detail"],
        retry_after=fields["wait"],
        unreachable=fields.get("unreachable", ()),
    )
    if (said := fields.get("verbatim")) is not None:
        error.response = known(UpstreamResponse, {**said, "body": said["body"].encode("latin-1")})
    return error


def _read_error(fields: Mapping[str, Any]) -> RagherdError:
    match fields["kind"]:
        case "upstream":
            return _read_upstream(fields)
        case "prompt_too_long":
            return PromptTooLong(fields["tokens"], fields["limit"])
        case "drained":
            return BackendsDrained(fields["name"])
        case "breaker":
            return BreakerOpen(fields["name"], fields["wait"], forced=fields["forced"])
        case "bulkhead":
            return BulkheadFull(fields["name"], fields["reason"], fields["wait"])
        case _:
            return InternalError()


_READ: Final[Mapping[str, Callable[[dict[str, Any]], FlightPayload]]] = {
    "piece": lambda fields: known(TextMessage, fields),
    "sources": lambda fields: SourcesMessage(fields["attempt"], _read_sources(fields)),
    "queued": lambda fields: known(Queued, fields),
    "landed": _read_landed,
    "handed_over": lambda _: LeaderLeft(),
    "error": _read_error,
}
