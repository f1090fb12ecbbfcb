"""At most one retry a call, and only so many among all calls: a struggling Ollama must not get twice the load.

A worker keeps to a share of its own calls, and to the same share of the fleet's while Redis tells it those: then the
reserve is the fleet's too, and not one for each worker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from api.errors import UpstreamError, UpstreamFault
from api.values import Retry

T = TypeVar("T")

SHARE: Final = 0.2
"""Retries for each call of the last `WINDOW` seconds."""
RESERVE: Final = 10.0
"""Retries beyond that: without, a quiet service could not retry at all."""
WINDOW: Final = 60.0
BUCKET: Final = 10.0
"""Seconds that are counted together."""
PAUSE: Final = (0.05, 0.15)
"""Seconds before a retry, drawn at random: a server that restarts needs a moment, and callers should not march."""


@dataclass(slots=True)
class Counts:
    """Calls, and the retries made for them."""

    calls: int = 0
    retries: int = 0

    def leave_room(self) -> bool:
        """Whether one more retry is within the budget."""
        return self.retries + 1 <= RESERVE + SHARE * self.calls


class RetryBudget:
    """One worker's hold on the budget; no I/O. See `redis_store.retry_counts` for how it learns the fleet's counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: deque[tuple[float, Counts]] = deque()
        self._unsent = Counts()
        self._fleet: Counts | None = None
        self.retried = 0
        """Retries charged since the start."""

    def called(self, retry: Retry = "here") -> None:
        """Notes a call; where its retry is spent, it is one itself."""
        if retry == "spent":
            return
        self._bucket().calls += 1
        self._unsent.calls += 1

    def spend(self) -> bool:
        """Whether one more retry may be made now; if so, it is charged."""
        bucket = self._bucket()
        if not (self._own().leave_room() and self._fleets().leave_room()):
            return False
        self.retried += 1
        bucket.retries += 1
        self._unsent.retries += 1
        return True

    def admits(self, error: UpstreamError, retry: Retry = "here") -> bool:
        """Whether the adapter may repeat a call that failed with `error` before any byte; if so, it is charged.

        A stale connection costs nothing: Ollama never saw the request.
        """
        if not error.row.retryable:
            return False
        if error.fault is UpstreamFault.CONNECTION_STALE:
            return True
        return retry == "here" and self.spend()

    async def before_retry(self, error: UpstreamError, retry: Retry) -> None:
        """Returns, after a pause, where `admits` says so. Raises `error` where it does not."""
        if not self.admits(error, retry):
            raise error
        if error.fault is not UpstreamFault.CONNECTION_STALE:
            await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret

    def take_unsent(self) -> tuple[int, int]:
        """Calls and retries since this was last asked: for the fleet's counts."""
        taken, self._unsent = self._unsent, Counts()
        return taken.calls, taken.retries

    def fleet_is(self, calls: int, retries: int) -> None:
        """The fleet's counts of the last `WINDOW` seconds, this worker's among them."""
        self._fleet = Counts(calls, retries)

    def fleet_is_unknown(self) -> None:
        """Redis is down: this worker's own counts are all there is."""
        self._fleet = None

    def _own(self) -> Counts:
        counted = [counts for _, counts in self._buckets]
        return Counts(sum(counts.calls for counts in counted), sum(counts.retries for counts in counted))

    def _fleets(self) -> Counts:
        if self._fleet is None:
            return Counts()
        return Counts(self._fleet.calls + self._unsent.calls, self._fleet.retries + self._unsent.retries)

    def _bucket(self) -> Counts:
        """The one of now; those that are too old are dropped."""
        now = self._clock()
        while self._buckets and self._buckets[0][0] <= now - WINDOW:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1][0] <= now - BUCKET:
            self._buckets.append((now, Counts()))
        return self._buckets[-1][1]


async def with_one_retry(call: Callable[[], Awaitable[T]], budget: RetryBudget, retry: Retry = "here") -> T:
    """What `call()` gives, called at most twice. It must raise its errors before anything of its answer is used."""
    budget.called(retry)
    try:
        return await call()
    except UpstreamError as error:
        await budget.before_retry(error, retry)
    return await call()
