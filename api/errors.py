"""Every error a client can see, modelled once. An error knows its status, its headers and its problem type.

    RagherdError                  500
    ├── InternalError             500   a fault of the service's own
    ├── InvalidRequest            422   the request is not what the API takes
    ├── RequestTimeout            408   the body came too slowly
    ├── MalformedHead             400   the request's head breaks HTTP's own rules
    ├── HostNotAllowed            400   `Host` is not in ALLOWED_HOSTS
    ├── PayloadTooLarge           413   the body, or what a document becomes, is over a limit
    ├── UnsupportedDocument       415   a file of a kind that is not read
    ├── TooManyDocuments          409   a tenant has as many as it may
    ├── UnreadableDocument        422   a file that can not be read: broken, encrypted, or not what it says it is
    ├── NotAuthenticated          401
    ├── NotAuthorized             403
    ├── NotFound                  404
    ├── OnlyIfCached              504   `Cache-Control: only-if-cached`, and nothing is
    ├── DeadlinePassed            504   the caller's own deadline, `X-Request-Timeout`
    ├── ServiceUnavailable        503   starting, draining, or a store that the call needs is down
    │   ├── BreakerOpen           503   the circuit breaker admits no call now
    │   └── BulkheadFull          503   too many calls are under way, and too many wait
    └── UpstreamError           by row  Ollama failed: the status is in `faults.FAULTS`

`endpoints/error_responses.py` renders them all as RFC 9457 problem documents.
Outside the tree, never rendered: `SettingsError` (stops the start), `StoreUnavailable` (Redis is down: the caller
of a store degrades instead of failing), `EmbeddingUnavailable` (a miss of the semantic tier, also
where a text cannot be embedded: `TextNotEmbedded`), `RerankingUnavailable` (passages stay as they were found), and
`DocumentsChanged` (an answer is checked again).

What can go wrong with a call to Ollama: how the circuit breaker reads it and what the client gets.

One readable table, `FAULTS`; docs/http-api.md shows the same table and a test compares the two.
Imports nothing local.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from pybreaker import CircuitBreakerError

CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that disconnected before its response."""


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


class RagherdError(Exception):
    """A problem that a client is told about."""

    status: int = 500
    slug: ClassVar[str] = "internal-error"
    title: str = "Internal error"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members
        """Further members of the problem document (RFC 9457, section 3.2)."""

    @property
    def problem_type(self) -> str:
        """The URI that identifies the kind of problem."""
        return f"urn:ragherd:problem:{self.slug}"


class InternalError(RagherdError):
    def __init__(self) -> None:
        super().__init__("Something went wrong in the service; its log has the details.")


class InvalidRequest(RagherdError):
    status = 422
    slug = "invalid-request"
    title = "The request is not valid"


class RequestTimeout(RagherdError):
    """The connection is closed after it: where the next request would begin is not known (RFC 9110, section 15.5.9)."""

    status = 408
    slug = "request-timeout"
    title = "The request came too slowly"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class MalformedHead(RagherdError):
    status = 400
    slug = "malformed-head"
    title = "The head of the request is not valid"


class HostNotAllowed(RagherdError):
    status = 400
    slug = "host-not-allowed"
    title = "The service is not called by this name"


class PayloadTooLarge(RagherdError):
    status = 413
    slug = "payload-too-large"
    title = "The body is too large"


class UnsupportedDocument(RagherdError):
    status = 415
    slug = "unsupported-document"
    title = "Documents of this kind are not read"


class TooManyDocuments(RagherdError):
    status = 409
    slug = "too-many-documents"
    title = "The knowledge base is full"


class UnreadableDocument(RagherdError):
    status = 422
    slug = "unreadable-document"
    title = "The document can not be read"


class NotAuthenticated(RagherdError):
    status = 401
    slug = "not-authenticated"
    title = "A valid key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class NotAuthorized(RagherdError):
    status = 403
    slug = "not-authorized"
    title = "The key has not the right for this"


class NotFound(RagherdError):
    status = 404
    slug = "not-found"
    title = "Not found"


class OnlyIfCached(RagherdError):
    status = 504
    slug = "not-cached"
    title = "No cached answer, and the request allows no other"


class DeadlinePassed(RagherdError):
    status = 504
    slug = "deadline-passed"
    title = "The request's own deadline has passed"


class ServiceUnavailable(RagherdError):
    status = 503
    slug = "unavailable"
    title = "The service can not answer now"

    def __init__(self, detail: str, *, retry_after: float | None = None, **members: Any) -> None:
        headers = {} if retry_after is None else {"Retry-After": retry_after_seconds(retry_after)}
        super().__init__(detail, headers=headers, **members)


class BreakerOpen(ServiceUnavailable, CircuitBreakerError):
    """Also pybreaker's own error, for those who catch that."""

    slug = "circuit-breaker-open"
    title = "The circuit breaker is open"

    def __init__(self, breaker: str, retry_after: float, *, forced: bool = False) -> None:
        why = "an operator forced it, until it is reset" if forced else "Ollama failed and is given time to recover"
        super().__init__(
            f"The circuit breaker '{breaker}' is open: {why}.",
            retry_after=retry_after,
            breaker=breaker,
        )
        self.retry_after = retry_after
        self.forced = forced


class BulkheadFull(ServiceUnavailable):
    """No permit for a call to Ollama: `reason` is `queue_full`, `deadline` or `displaced`. No fault of Ollama's."""

    slug = "bulkhead-full"
    title = "Too many calls to Ollama"

    def __init__(self, bulkhead: str, reason: str, retry_after: float) -> None:
        super().__init__(
            f"As many calls to Ollama as '{bulkhead}' allows are under way, and {_WHY_NOT[reason]}.",
            retry_after=retry_after,
            bulkhead=bulkhead,
            reason=reason,
        )
        self.reason = reason
        self.retry_after = retry_after


_WHY_NOT = {
    "queue_full": "no more may wait",
    "deadline": "none ended within the time that a call may wait",
    "displaced": "the place in line went to a caller with fewer",
}


class UpstreamError(RagherdError):
    """A call to Ollama failed. `faults.FAULTS` says what that means for the breaker and for the client."""

    slug = "upstream-failed"
    title = "Ollama failed"

    def __init__(self, fault: UpstreamFault, detail: str, *, retry_after: float | None = None) -> None:
        row = FAULTS[fault]
        if retry_after is None and row.status == 503:
            retry_after = 1.0  # busy, and nobody knows for how long
        headers = {} if retry_after is None else {"Retry-After": retry_after_seconds(retry_after)}
        super().__init__(detail, headers=headers, fault=fault.value)
        self.fault = fault
        self.retry_after = retry_after
        self.row = row
        self.status = row.status


class SettingsError(Exception):
    """A setting is wrong: one line that names the variable; the service does not start."""


class StoreUnavailable(Exception):
    """Redis can not be used now: callers degrade, clients never see it."""


class DocumentsChanged(Exception):
    """An answer can not be stored as it is: the tenant's documents changed after passages were looked for.

    `now_ms` is the time by the cache's clock: passages that are looked for from here on are later.
    """

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.now_ms = now_ms


class EmbeddingUnavailable(Exception):
    """The embedder can not embed now: the semantic tier is a miss, the request goes on."""


class TextNotEmbedded(EmbeddingUnavailable):
    """One of the texts cannot be embedded, now or later: others can."""


class RerankingUnavailable(Exception):
    """The re-ranker can not judge now: passages stay in the order in which they were found."""


def retry_after_seconds(seconds: float) -> str:
    """`Retry-After` as RFC 9110 has it: whole seconds, rounded up, at least 1."""
    return str(max(1, math.ceil(seconds)))
