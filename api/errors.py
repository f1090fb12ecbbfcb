"""Every error that a client can receive. Each class defines its status, headers and problem type.

    RagherdError                  500
    ├── InternalError             500   a bug in the service
    ├── InvalidRequest            422   malformed JSON, or an invalid or unknown field
    ├── RequestTimeout            408   the body arrived too slowly
    ├── MalformedHead             400   the request head violates HTTP
    ├── HostNotAllowed            400   `Host` is not in ALLOWED_HOSTS
    ├── PayloadTooLarge           413   the body or the document exceeds a limit
    ├── UnsupportedDocument       415   the file type is not supported
    ├── TooManyDocuments          409   the tenant has reached DOCUMENTS_MAX
    ├── LastBackend               409   draining it would leave no backend
    ├── ExperimentConflict        409   another experiment is running
    ├── DocumentExists            409   a document from the same source exists
    ├── KeyLimitReached           409   there are as many API keys as there may be
    ├── PromptTooLong             422   the prompt has more tokens than OLLAMA_MAX_PROMPT_TOKENS
    ├── UnreadableDocument        422   the file cannot be parsed: broken, encrypted or mislabeled
    ├── NotAuthenticated          401
    ├── NotAuthorized             403
    ├── NotFound                  404
    ├── RateLimited               429   a limit of the key or the tenant is used up
    ├── NotInstalled              501   the request needs an extra that is not installed
    ├── OnlyIfCached              504   `Cache-Control: only-if-cached` without a cached answer
    ├── DeadlinePassed            504   the caller's deadline, `X-Request-Timeout`
    ├── ServiceUnavailable        503   starting, draining, or a required store is down
    │   ├── KeysUnavailable       503   Redis or the provider is down, and the worker does not know the key
    │   ├── TextUndecryptable     503   `Undecryptable`, for a text that the client asks for
    │   ├── BreakerOpen           503   the circuit breaker rejects the call
    │   │   └── BackendsDrained   503   an admin has drained every backend
    │   └── BulkheadFull          503   too many calls are running and waiting
    └── UpstreamError           by row  Ollama failed: `FAULTS` has the status

`endpoints/problems.py` renders them as RFC 9457 problem documents.

Errors outside the tree never reach a client:

    SettingsError                 an invalid setting; the service does not start
    StoreUnavailable              Redis is down; callers degrade
    └── Undecryptable             no key of ENCRYPTION_KEYS decrypts a text in Redis
    EmbeddingUnavailable          no embedding; the semantic tier misses
    └── TextNotEmbedded           the model cannot embed this text
    RerankingUnavailable          no re-ranking; passages keep their order
    VerifierUnavailable           no score; a candidate that needs one is not served
    DocumentsChanged              the passages are out of date; the answer is checked again

`FAULTS` lists the ways a call to Ollama can fail, how the circuit breaker counts each, and the client's status.
docs/http-api.md has the same table, and a test compares the two. This module imports nothing local.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from pybreaker import CircuitBreakerError

CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that disconnected before its response."""


class UpstreamFault(StrEnum):
    """The ways a call to Ollama fails."""

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
    PATH_NOT_FOUND = "path_not_found"
    BUSY = "busy"


BreakerReading = Literal["failure", "ignored"]


@dataclass(frozen=True, slots=True)
class FaultRow:
    """A fault's meaning, how the breaker counts it, the client's status, and whether one retry is allowed."""

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
        UpstreamFault.PATH_NOT_FOUND: FaultRow("404: this release of Ollama lacks the path", "ignored", 404),
        UpstreamFault.BUSY: FaultRow("429 or 503: Ollama's queue is full", "ignored", 503),
    }
)


class RagherdError(Exception):
    """An error that is reported to the client."""

    status: int = 500
    slug: ClassVar[str] = "internal-error"
    title: str = "Internal error"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members
        """Additional members of the problem document (RFC 9457, section 3.2)."""

    def with_header(self, name: str, value: str) -> Self:
        """Returns a copy with one more header. All callers of a flight get the same error, so it must not change."""
        copied = type(self).__new__(type(self), *self.args)
        copied.__dict__.update(self.__dict__, headers={**self.headers, name: value})
        return copied

    @property
    def problem_type(self) -> str:
        """The URI that identifies the kind of problem."""
        return f"urn:ragherd:problem:{self.slug}"


class InternalError(RagherdError):
    def __init__(self) -> None:
        super().__init__("Internal error. The service's log has the details under the request ID.")


class InvalidRequest(RagherdError):
    status = 422
    slug = "invalid-request"
    title = "Invalid request"


class RequestTimeout(RagherdError):
    """Closes the connection, because the start of the next request is unknown (RFC 9110, section 15.5.9)."""

    status = 408
    slug = "request-timeout"
    title = "Request timeout"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class MalformedHead(RagherdError):
    status = 400
    slug = "malformed-head"
    title = "Malformed request head"


class HostNotAllowed(RagherdError):
    status = 400
    slug = "host-not-allowed"
    title = "Host not allowed"


class PayloadTooLarge(RagherdError):
    status = 413
    slug = "payload-too-large"
    title = "Payload too large"


class UnsupportedDocument(RagherdError):
    status = 415
    slug = "unsupported-document"
    title = "Unsupported document type"


class TooManyDocuments(RagherdError):
    status = 409
    slug = "too-many-documents"
    title = "Document limit reached"


class LastBackend(RagherdError):
    """Raised instead of draining the last backend, unless that is forced."""

    status = 409
    slug = "last-backend"
    title = "Last backend"


class ExperimentConflict(RagherdError):
    status = 409
    slug = "experiment-conflict"
    title = "Another experiment is running"


class KeyLimitReached(RagherdError):
    status = 409
    slug = "key-limit"
    title = "Key limit reached"


class DocumentExists(RagherdError):
    """Raised for `on_conflict=refuse`."""

    status = 409
    slug = "document-exists"
    title = "The document exists"


class PromptTooLong(RagherdError):
    """Raised before the prompt is sent: Ollama reads a prompt to its end, and no other meanwhile."""

    status = 422
    slug = "prompt-too-long"
    title = "Prompt too long"

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"The prompt has about {tokens:,} tokens, and OLLAMA_MAX_PROMPT_TOKENS is {limit:,}.",
            tokens=tokens,
            limit=limit,
        )


class UnreadableDocument(RagherdError):
    status = 422
    slug = "unreadable-document"
    title = "Unreadable document"


class NotAuthenticated(RagherdError):
    status = 401
    slug = "not-authenticated"
    title = "Valid API key required"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class NotAuthorized(RagherdError):
    status = 403
    slug = "not-authorized"
    title = "Permission denied"


class NotFound(RagherdError):
    status = 404
    slug = "not-found"
    title = "Not found"


class RateLimited(RagherdError):
    status = 429
    slug = "rate-limited"
    title = "Rate limit exceeded"

    def __init__(self, limit: str, wait: float) -> None:
        super().__init__(
            f"The limit '{limit}' is used up.", headers={"Retry-After": retry_after_seconds(wait)}, limit=limit
        )
        self.limit = limit


class NotInstalled(RagherdError):
    """Raised for `feature` if the extra that it needs is not installed."""

    status = 501
    slug = "not-installed"
    title = "Not installed"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} is not installed. Run `pip install 'ragherd[{extra}]'` and restart the service.", extra=extra
        )


class OnlyIfCached(RagherdError):
    status = 504
    slug = "not-cached"
    title = "No cached answer"


class DeadlinePassed(RagherdError):
    status = 504
    slug = "deadline-passed"
    title = "Deadline exceeded"


class ServiceUnavailable(RagherdError):
    status = 503
    slug = "unavailable"
    title = "Service unavailable"

    def __init__(self, detail: str, *, retry_after: float | None = None, **members: Any) -> None:
        headers = {} if retry_after is None else {"Retry-After": retry_after_seconds(retry_after)}
        super().__init__(detail, headers=headers, **members)


class KeysUnavailable(ServiceUnavailable):
    """Raised instead of `NotAuthenticated` for a key that may be valid."""

    slug = "keys-unavailable"
    title = "The key cannot be checked"

    def __init__(self) -> None:
        super().__init__("The key cannot be checked: its store or provider is unavailable.", retry_after=1)


class TextUndecryptable(ServiceUnavailable):
    """`key_id` names the key that the text was encrypted with."""

    slug = "undecryptable-text"
    title = "A text cannot be decrypted"

    def __init__(self, error: Undecryptable) -> None:
        super().__init__(str(error), retry_after=60, key_id=error.key_id)


class BreakerOpen(ServiceUnavailable, CircuitBreakerError):
    """Raised instead of a call. Also a `pybreaker.CircuitBreakerError`, for code that catches that."""

    slug = "circuit-breaker-open"
    title = "The circuit breaker is open"

    def __init__(self, breaker: str, retry_after: float, *, forced: bool = False, detail: str = "") -> None:
        why = "an operator forced it open until reset" if forced else "Ollama failed and gets time to recover"
        super().__init__(
            detail or f"The circuit breaker '{breaker}' is open: {why}.",
            retry_after=retry_after,
            breaker=breaker,
        )
        self.retry_after = retry_after
        self.forced = forced


class BackendsDrained(BreakerOpen):
    """Raised instead of a call while every backend that could take it is drained. Handled like an open breaker."""

    slug = "backends-drained"
    title = "Every backend is drained"

    def __init__(self, backend: str) -> None:
        super().__init__(backend, DRAINED_SECONDS, detail="An admin has drained every Ollama that could answer.")


DRAINED_SECONDS: Final = 30.0
"""`Retry-After` while every backend is drained: nobody knows how long that takes."""


class BulkheadFull(ServiceUnavailable):
    """Raised when a call gets no permit. `reason` is `queue_full`, `deadline` or `displaced`, or `no_permit` for a
    call that does not queue. Does not count as a failure of Ollama.
    """

    slug = "bulkhead-full"
    title = "Too many calls to Ollama"

    def __init__(self, bulkhead: str, reason: str, retry_after: float) -> None:
        retry_after = min(retry_after, LONGEST_WAIT_SECONDS)
        super().__init__(
            f"The bulkhead '{bulkhead}' is full: {_REASONS[reason]}.",
            retry_after=retry_after,
            bulkhead=bulkhead,
            reason=reason,
        )
        self.reason = reason
        self.retry_after = retry_after


LONGEST_WAIT_SECONDS: Final = 600.0
"""The longest `Retry-After` of a full bulkhead: estimates that far ahead are guesses."""
_REASONS = {
    "no_permit": "every permit is in use",
    "queue_full": "the queue is full",
    "deadline": "no permit became free within the maximum wait",
    "displaced": "a tenant with fewer waiting calls took the place in the queue",
}


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """Ollama's response to a forwarded request: status, media type and body."""

    status: int
    media_type: str
    body: bytes


class UpstreamError(RagherdError):
    """Raised when a call to Ollama fails. `FAULTS` says what the fault means for the breaker and the client."""

    slug = "upstream-failed"
    title = "Ollama failed"

    def __init__(
        self,
        fault: UpstreamFault,
        detail: str,
        *,
        retry_after: float | None = None,
        unreachable: Sequence[str] = (),
    ) -> None:
        row = FAULTS[fault]
        if retry_after is None and row.status == 503:
            retry_after = 1.0  # busy for an unknown time
        headers = {} if retry_after is None else {"Retry-After": retry_after_seconds(retry_after)}
        others = {"unreachable": list(unreachable)} if unreachable else {}
        super().__init__(detail, headers=headers, fault=fault.value, **others)
        self.fault = fault
        self.unreachable = tuple(unreachable)
        """Names of backends that could not be asked, if the others lack the model."""
        self.retry_after = retry_after
        self.row = row
        self.status = row.status
        self.response: UpstreamResponse | None = None
        """Ollama's response, if the request was forwarded."""

    @property
    def verbatim(self) -> UpstreamResponse | None:
        """Ollama's response, if it is the client's to see: the client's own request was wrong."""
        return self.response if self.fault is UpstreamFault.REQUEST_REJECTED else None


class SettingsError(Exception):
    """A setting is invalid. The message is one line that names the variable; the service does not start."""


class StoreUnavailable(Exception):
    """Redis is down or too slow. Callers degrade; clients never see this error."""


class Undecryptable(StoreUnavailable):
    """A text in Redis cannot be decrypted. `key_id`: its key; `is_known`: the worker has one of this ID."""

    def __init__(self, key_id: str, *, is_known: bool) -> None:
        self.key_id = key_id if key_id.isalnum() or key_id.replace("-", "").replace("_", "").isalnum() else "?"
        if is_known:
            advice = f"The key '{self.key_id}' of ENCRYPTION_KEYS is another than the one it was encrypted with."
        else:
            advice = f"Add its key to ENCRYPTION_KEYS: '{self.key_id}'."
        super().__init__(f"A text in Redis cannot be decrypted. {advice}")


class DocumentsChanged(Exception):
    """The answer cannot be stored, because the tenant's documents changed after its passages were read.

    `now_ms` is the time by the cache's clock. Passages that are read from now on are newer.
    """

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.now_ms = now_ms


class EmbeddingUnavailable(Exception):
    """The embedder cannot embed now. The semantic tier misses and the request continues."""


class TextNotEmbedded(EmbeddingUnavailable):
    """One of the texts can never be embedded; the others can."""


class RerankingUnavailable(Exception):
    """The re-ranker cannot score passages now. They keep the order in which they were found."""


class VerifierUnavailable(Exception):
    """The verifier cannot score candidates now. One that needs a score is not served."""


class ComparingUnavailable(Exception):
    """The comparator's model cannot score a pair of answers now. The rules decide alone."""


Raised = TypeVar("Raised", bound=BaseException)


def without_frames(error: Raised) -> Raised:
    """Drops the tracebacks of an error and of those that it came from, and returns it.

    For an expected error that is kept. A traceback refers to frames, these to their locals and, since Python 3.13, to
    their callers. If one of them refers to the error, only the garbage collector frees them all.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            pending += (one.__cause__, one.__context__)
    return error


def retry_after_seconds(seconds: float) -> str:
    """Returns the value of `Retry-After` (RFC 9110): whole seconds, rounded up, at least 1."""
    return str(max(1, math.ceil(seconds)))
