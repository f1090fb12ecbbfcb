"""Warm-ups of the cache: begun and ended at any worker, done by one, resumed by another when that one dies."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from api.errors import InternalError, NotFound, StoreUnavailable
from api.ports.warm_ups import WarmUpJobs, WarmUpProgress
from api.query.cache_warmer import CacheWarmer, WarmUpEvents
from api.query.warm_question import WarmQuestion
from api.query.warm_up_run import LEASE, WarmUpRun

LOOK_SECONDS: Final = 1.0
"""How often a worker looks for warm-ups that nobody has, where few others do."""


class WarmUps:
    """One worker's hold on the warm-ups of the fleet. It does one at a time. `pace`: how much less often it looks."""

    def __init__(
        self,
        jobs: WarmUpJobs,
        warmer: CacheWarmer,
        events: WarmUpEvents,
        concurrency: int,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._jobs = jobs
        self._warmer = warmer
        self._events = events
        self._concurrency = concurrency
        self._pace = pace
        self._news = asyncio.Event()

    async def begin(self, questions: Sequence[WarmQuestion]) -> WarmUpProgress:
        """Begins one; it goes on by itself. Raises `StoreUnavailable`."""
        job = secrets.token_hex(8)
        await self._jobs.create(job, await asyncio.to_thread(_encoded, questions))
        self._news.set()
        progress = await self._jobs.progress(job)
        if progress is None:  # written a moment ago
            raise InternalError
        return progress

    async def progress(self, job: str) -> WarmUpProgress:
        """Raises `NotFound`, `StoreUnavailable`."""
        progress = await self._jobs.progress(job)
        if progress is None:
            raise NotFound(f"There is no warm-up '{job}', or it ended more than an hour ago.")
        return progress

    async def cancel(self, job: str) -> WarmUpProgress:
        """Ends one, whichever worker has it; what is cached stays. Raises `NotFound`, `StoreUnavailable`."""
        await self._jobs.cancel(job)
        return await self.progress(job)

    async def keep_going(self) -> None:
        """Does what there is to do, for ever. A task of the worker's."""
        while True:
            with suppress(StoreUnavailable):
                for job in await self._jobs.unfinished():
                    await self._take(job)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS * self._pace() * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await self._news.wait()
            self._news.clear()

    async def _take(self, job: str) -> None:
        if not await self._jobs.hold(job, LEASE):
            return
        self._events.warm_up_taken(job)
        try:
            await WarmUpRun(job, self._jobs, self._warmer, self._events, self._concurrency).to_its_end()
        finally:
            with suppress(StoreUnavailable):
                await self._jobs.hold(job, 0)


def _encoded(questions: Sequence[WarmQuestion]) -> list[bytes]:
    return [question.encoded() for question in questions]
