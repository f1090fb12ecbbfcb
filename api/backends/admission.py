"""One call through the bulkhead and the circuit breaker of a backend: admitted before, reported after.

The breaker comes last, so that no half-open permit waits in line; an open one is asked first, so that nobody waits in
vain.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from api.backends.failover import Terms
from api.backends.members import Backend
from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.ports.resilience import Attempt


class Admission:
    """A call that was admitted. Its caller says when it has begun to answer, and that it succeeded."""

    def __init__(self, attempt: Attempt, terms: Terms) -> None:
        self._attempt = attempt
        self._terms = terms
        self._allowed = terms.remaining
        self._started = time.monotonic()
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """To the first event; without one, until now. What follows may be the reader's own time."""
        return time.monotonic() - self._started if self._first is None else self._first

    def answers(self) -> None:
        """An event has come."""
        if self._first is None:
            self._first = time.monotonic() - self._started

    async def succeeded(self, load_duration: float) -> None:
        """The time that the model took to load says nothing about Ollama."""
        await self._attempt.succeeded(max(0.0, self.seconds - load_duration))

    async def failed(self, error: UpstreamError) -> None:
        """Tells the breaker, where the failure speaks against Ollama."""
        if speaks_against_ollama(error, self._allowed, self._terms.total):
            await self._attempt.failed(self.seconds)


def speaks_against_ollama(error: UpstreamError, allowed: float, total: float) -> bool:
    """`allowed`: the seconds of `total` that waits and earlier attempts had left to this call.

    A call that ran out of time although it had less than half of it was late for other reasons.
    """
    was_cut_short = error.fault is UpstreamFault.TOTAL_TIMEOUT and allowed < total / 2
    return error.row.breaker == "failure" and not was_cut_short


@asynccontextmanager
async def admitted(
    backend: Backend[Any], terms: Terms, tenant: str, *, background: bool = False
) -> AsyncIterator[Admission]:
    """Around one call. Raises `BreakerOpen` and `BulkheadFull`; a caller that leaves counts as ignored."""
    backend.breaker.check()
    permit = backend.bulkhead.permit(tenant, background=background, within=terms.remaining)
    with backend.busy():
        async with permit, backend.breaker.attempt() as attempt:
            admission = Admission(attempt, terms)
            try:
                yield admission
            except UpstreamError as error:
                await admission.failed(error)
                raise
