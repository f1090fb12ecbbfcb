"""Several backends as one: the loop over them, for every kind of call.

What a failure allows:
- free: the backend never began the call (no connection, or it lacks the model), so nothing is done twice;
- charged, by the policy: it may have begun. One further attempt, within the budget of retries;
- anything else, and anything after the first event where somebody reads along: the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from api.backends.choice import Backend, BackendEvents, Backends
from api.errors import BreakerOpen, BulkheadFull, RagherdError, UpstreamError, UpstreamFault
from api.ports.coordination import Retries, TextOutput
from api.values import Retry

S = TypeVar("S")
R = TypeVar("R")
Clock = Callable[[], float]

FREE: Final = frozenset(
    {
        UpstreamFault.CONNECT_FAILED,
        UpstreamFault.CONNECT_TIMEOUT,
        UpstreamFault.CONNECTION_STALE,
        UpstreamFault.POOL_TIMEOUT,
        UpstreamFault.MODEL_NOT_FOUND,
    }
)
CHARGED: Final = frozenset(
    {
        UpstreamFault.CONNECTION_LOST,
        UpstreamFault.FIRST_TOKEN_TIMEOUT,
        UpstreamFault.SERVER_ERROR,
        UpstreamFault.BUSY,
        UpstreamFault.STREAM_TRUNCATED,
    }
)
EMBEDDING_CHARGED: Final = CHARGED | {
    UpstreamFault.EMBED_FAILED,
    UpstreamFault.INVALID_RESPONSE,
    UpstreamFault.UNAUTHORIZED,
}
"""An embedding has no side effect and no first token, so more of what fails may be tried elsewhere."""


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    """What a caller allows. `total`: seconds for the whole call: the waits in line and all attempts together.

    `charged`: the faults that allow one further attempt, beside those in `FREE`. `waits_again`: whether a call that
    waited in one line for as long as it may joins the line of another backend.
    """

    total: float
    charged: frozenset[UpstreamFault] = CHARGED
    waits_again: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one attempt. `until`: the end of the whole call, on the monotonic clock; `total`: its seconds from the start.

    `retry`: where the call may be repeated if it fails.
    """

    until: float
    total: float
    retry: Retry = "here"
    clock: Clock = time.monotonic

    @property
    def remaining(self) -> float:
        """Seconds left for the call."""
        return max(0.0, self.until - self.clock())


Attempting = Callable[[Backend[S], Terms], Awaitable[R]]
"""One attempt on one backend. Raises `BreakerOpen`, `BulkheadFull`, `UpstreamError`."""


class Failover(Generic[S]):
    """Calls on whichever backend can."""

    def __init__(
        self,
        backends: Backends[S],
        policy: FailoverPolicy,
        retries: Retries,
        events: BackendEvents,
        clock: Clock = time.monotonic,
    ) -> None:
        self._backends = backends
        self._policy = policy
        self._retries = retries
        self._events = events
        self._clock = clock

    async def call(
        self,
        model: str,
        attempt: Attempting[S, R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - only ever shortens the policy's total
        retry: Retry = "here",
        output: TextOutput | None = None,
        restarts: bool = False,
    ) -> R:
        """What the attempt that succeeds gives. `retry` holds where there is no other backend to go to.

        `output`: where attempts write. One that fails after its first word is not repeated, since somebody may have
        read it; but with `restarts` nobody reads along, and the output is restarted.
        Raises `BreakerOpen` or `BulkheadFull` when no backend admits the call, with the shortest wait.
        """
        total = self._policy.total if timeout is None else min(timeout, self._policy.total)
        course = _Attempts(Terms(self._clock() + total, total, retry, self._clock))
        candidates = self._backends.candidates(model)
        while candidates:
            backend = candidates.pop(0)
            if course.failure is not None and backend.breaker.rejects:
                continue
            try:
                return await attempt(backend, course.next_terms(candidates))
            except (BreakerOpen, BulkheadFull) as error:
                self._refused(error, course)
            except UpstreamError as error:
                begun = output is not None and output.begun
                if begun and not restarts:
                    raise
                self._failed(error, backend, course, last=not candidates)
                if output is not None and begun:
                    output.restart()
        raise course.verdict()

    def _refused(self, error: BreakerOpen | BulkheadFull, course: _Attempts) -> None:
        waited_in_vain = isinstance(error, BulkheadFull) and error.reason == "deadline"
        if waited_in_vain and (not self._policy.waits_again or not course.terms.remaining):
            raise error
        course.refusals.append(error)

    def _failed(self, error: UpstreamError, backend: Backend[S], course: _Attempts, *, last: bool) -> None:
        """Notes a failure that another backend may make good. Raises it where none may."""
        if error.fault not in FREE and not self._charge(error, course):
            raise error
        course.failed(error)
        if not last:
            self._events.failed_over(backend.name, error)

    def _charge(self, error: UpstreamError, course: _Attempts) -> bool:
        """Whether the one attempt that costs is still to be had; if so, it is charged."""
        if error.fault not in self._policy.charged or course.spent or not course.terms.remaining:
            return False
        course.spent = self._retries.spend()
        return course.spent


@dataclass(slots=True)
class _Attempts:
    """What came of the attempts so far. `terms`: those of the call."""

    terms: Terms
    failure: UpstreamError | None = None
    spent: bool = False
    refusals: list[BreakerOpen | BulkheadFull] = field(default_factory=list)

    def next_terms(self, others: list[Backend[S]]) -> Terms:
        """Of the next attempt: the adapter itself may retry when there is nowhere else to go."""
        elsewhere = any(not other.breaker.rejects for other in others)
        retry: Retry = "spent" if self.spent else "elsewhere" if elsewhere else self.terms.retry
        self.spent = self.spent or retry == "here"
        return replace(self.terms, retry=retry)

    def failed(self, error: UpstreamError) -> None:
        """Keeps the failure that says most: that a model is not on one backend says least."""
        if self.failure is None or self.failure.fault is UpstreamFault.MODEL_NOT_FOUND:
            self.failure = error

    def verdict(self) -> RagherdError:
        """What the client is told when no backend answered."""
        if self.failure is not None and self.failure.fault is not UpstreamFault.MODEL_NOT_FOUND:
            return self.failure
        if self.refusals:
            return min(self.refusals, key=lambda refusal: refusal.retry_after)
        assert self.failure is not None, "there is at least one backend"
        return self.failure
