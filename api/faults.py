"""What can go wrong with a call to Ollama: how the circuit breaker reads it and what the client gets.

One readable table, `FAULTS`; docs/http-api.md shows the same table and a test compares the two.
Imports nothing local.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal


class UpstreamFault(StrEnum):
    """The ways a call to Ollama fails, most of them named after what was seen on the wire."""

    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECTION_STALE = "connection_stale"
    CONNECTION_LOST = "connection_lost"
    POOL_TIMEOUT = "pool_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text
    COLD_START_TIMEOUT = "cold_start_timeout"
    INTER_TOKEN_TIMEOUT = "inter_token_timeout"  # noqa: S105
    TOTAL_TIMEOUT = "total_timeout"
    STREAM_ERROR = "stream_error"
    STREAM_TRUNCATED = "stream_truncated"
    INVALID_RESPONSE = "invalid_response"
    SERVER_ERROR = "server_error"
    EMBED_FAILED = "embed_failed"
    TEXT_NOT_EMBEDDED = "text_not_embedded"
    REQUEST_REJECTED = "request_rejected"
    UNAUTHORIZED = "unauthorized"
    MODEL_NOT_FOUND = "model_not_found"
    BUSY = "busy"


BreakerReading = Literal["failure", "ignored"]


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One row: the meaning of a fault, the breaker's reading, the client's status, and whether one retry is allowed."""

    meaning: str
    breaker: BreakerReading
    status: int
    retryable: bool = False


FAULTS: Mapping[UpstreamFault, FaultRow] = MappingProxyType(
    {
        UpstreamFault.CONNECT_FAILED: FaultRow(
            "connection refused, or the name does not resolve", "failure", 502, True
        ),
        UpstreamFault.CONNECT_TIMEOUT: FaultRow("no connection within its deadline", "failure", 502, True),
        UpstreamFault.CONNECTION_STALE: FaultRow("a reused connection closed before any byte", "ignored", 502, True),
        UpstreamFault.CONNECTION_LOST: FaultRow("the connection broke during the answer", "failure", 502),
        UpstreamFault.POOL_TIMEOUT: FaultRow("no free connection in this worker's pool", "ignored", 503),
        UpstreamFault.FIRST_TOKEN_TIMEOUT: FaultRow("no first token in time from a model in memory", "failure", 504),
        UpstreamFault.COLD_START_TIMEOUT: FaultRow("no first token in time, the model still loading", "ignored", 504),
        UpstreamFault.INTER_TOKEN_TIMEOUT: FaultRow("the stream of tokens stopped", "failure", 504),
        UpstreamFault.TOTAL_TIMEOUT: FaultRow("the whole answer took too long", "failure", 504),
        UpstreamFault.STREAM_ERROR: FaultRow("an error line in the middle of the stream", "failure", 502),
        UpstreamFault.STREAM_TRUNCATED: FaultRow("the stream ended without `done`", "failure", 502),
        UpstreamFault.INVALID_RESPONSE: FaultRow("the answer is not the JSON of Ollama's API", "failure", 502),
        UpstreamFault.SERVER_ERROR: FaultRow("500 (the runner crashed), 502 or 504", "failure", 502, True),
        UpstreamFault.EMBED_FAILED: FaultRow("the embedding runner failed (Ollama answers 400)", "failure", 502),
        UpstreamFault.TEXT_NOT_EMBEDDED: FaultRow("the model cannot embed this one text", "ignored", 422),
        UpstreamFault.REQUEST_REJECTED: FaultRow("400, or 500 for a bad option: our request was wrong", "ignored", 502),
        UpstreamFault.UNAUTHORIZED: FaultRow("401 or 403", "ignored", 502),
        UpstreamFault.MODEL_NOT_FOUND: FaultRow("404: the model is not on Ollama", "ignored", 404),
        UpstreamFault.BUSY: FaultRow("429 or 503: Ollama's queue is full", "ignored", 503),
    }
)
