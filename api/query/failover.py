"""Several backends as one: a call that fails on one backend before its first token goes on to another, unseen.

What a failure allows:
- free: the backend never began the call (no connection, or it has not the model), so nothing is done twice;
- charged: it may have begun. One further attempt, within the budget of retries;
- anything else, and anything after the first token where somebody reads along: the caller's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from typing import Final

from api.errors import BreakerOpen, BulkheadFull, RagherdError, UpstreamError
from api.faults import UpstreamFault
from api.model import Generation, GenerationRequest, Restart, Retry, Token
from api.ports.models import LanguageModel
from api.ports.resilience import Retries
from api.query import guarded_call
from api.query.backends import Backend, BackendEvents, Backends

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

Event = Token | Restart | Generation


class Failover:
    """Generations on whichever backend can. `total`: seconds for a whole answer, all attempts together."""

    def __init__(
        self, backends: Backends[LanguageModel], retries: Retries, total: float, events: BackendEvents
    ) -> None:
        self._backends = backends
        self._retries = retries
        self._total = total
        self._events = events

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `guarded_call.generate`. With `request.whole` an answer that broke off may begin anew, after a `Restart`.

        Raises `BreakerOpen` or `BulkheadFull` when no backend admits a call, with the shortest wait.
        """
        return aclosing(self._answer(request))

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        tried = _Tried(time.monotonic() + (self._total if request.timeout is None else request.timeout))
        candidates = self._backends.candidates(request.model)
        while candidates:
            backend = candidates.pop(0)
            if tried.failure is not None and backend.breaker.rejects:
                continue
            try:
                async with aclosing(_attempt(backend, tried.attempt(request, candidates))) as events:
                    async for event in events:
                        if tried.void:
                            tried.void = False
                            yield Restart()
                        tried.begun = True
                        yield event
                return
            except (BreakerOpen, BulkheadFull) as error:
                tried.refused(error)
            except UpstreamError as error:
                if tried.begun and not request.whole:
                    raise
                self._settle(error, backend, tried, last=not candidates)
        raise tried.verdict()

    def _settle(self, error: UpstreamError, backend: Backend[LanguageModel], tried: _Tried, *, last: bool) -> None:
        """Notes a failure that another backend may make good. Raises it where none may."""
        if error.fault not in FREE and not self._charge(error, tried):
            raise error
        tried.failed(error)
        if not last:
            self._events.failed_over(backend.name, error)

    def _charge(self, error: UpstreamError, tried: _Tried) -> bool:
        """Whether the one attempt that costs is still to be had; if so, it is charged."""
        if error.fault not in CHARGED or tried.spent or tried.remaining <= 0 or not self._retries.spend():
            return False
        tried.spent = True
        return True


async def _attempt(backend: Backend[LanguageModel], request: GenerationRequest) -> AsyncGenerator[Event, None]:
    with backend.busy():
        async with guarded_call.generate(backend.service, backend.bulkhead, backend.breaker, request) as events:
            async for event in events:
                yield event


@dataclass(slots=True)
class _Tried:
    """What came of the attempts so far. `until`: the end of the time for all of them, on the monotonic clock.

    `begun`: the present one has given something; `void`: one before it has, which counts for nothing now.
    """

    until: float
    failure: UpstreamError | None = None
    spent: bool = False
    begun: bool = False
    void: bool = False
    refusals: list[BreakerOpen | BulkheadFull] = field(default_factory=list)

    @property
    def remaining(self) -> float:
        return self.until - time.monotonic()

    def attempt(self, request: GenerationRequest, others: list[Backend[LanguageModel]]) -> GenerationRequest:
        """The next attempt: the adapter itself may retry when there is nowhere else to go."""
        elsewhere = any(not other.breaker.rejects for other in others)
        retry: Retry = "spent" if self.spent else "elsewhere" if elsewhere else request.retry
        self.spent = self.spent or retry == "here"
        return replace(request, retry=retry, timeout=max(0.0, self.remaining))

    def refused(self, error: BreakerOpen | BulkheadFull) -> None:
        """Keeps a refusal. Whoever waited in one line for as long as a call may does not join another."""
        if isinstance(error, BulkheadFull) and error.reason == "deadline":
            raise error
        self.refusals.append(error)

    def failed(self, error: UpstreamError) -> None:
        """Keeps the failure that says most: that a model is not on one backend says least."""
        self.void, self.begun = self.void or self.begun, False
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
