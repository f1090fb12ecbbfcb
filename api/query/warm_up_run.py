"""One worker's part in one warm-up of the cache: question after question, for as long as the warm-up is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from api.background import cancelled, let_go
from api.errors import EmbeddingUnavailable, RagherdError, StoreUnavailable
from api.ports.warm_ups import WarmUpJobs
from api.query.cache_warmer import CacheWarmer, Warmed, WarmUpEvents
from api.query.warm_question import WarmQuestion
from api.query.warm_up_patience import patience

T = TypeVar("T")
LEASE: Final = 5.0
"""Seconds. A worker that dies is succeeded by another after so long."""
BEAT: Final = 1.0
"""Seconds between renewals; one that was cancelled elsewhere ends within so long."""
AHEAD: Final = 32
"""Questions that are read at once."""
SHOWN: Final = 60
"""Characters of a question in a line of error."""


class WarmUpRun:
    """`concurrency` questions at once. The job has been taken."""

    def __init__(self, job: str, jobs: WarmUpJobs, warmer: CacheWarmer, events: WarmUpEvents, concurrency: int) -> None:
        self._job = job
        self._jobs = jobs
        self._warmer = warmer
        self._events = events
        self._concurrency = concurrency
        self._over = False
        self._ahead: list[bytes] = []
        self._in_hand: set[bytes] = set()
        self._reading = asyncio.Lock()

    async def to_its_end(self) -> None:
        """Returns when nothing is left, or when the warm-up is not this worker's any more."""
        keeper = asyncio.create_task(self._keep(), name="warm_up_keeper")
        lanes = {asyncio.create_task(self._lane(), name="warm_up_lane") for _ in range(self._concurrency)}
        for task in (keeper, *lanes):
            let_go(task, Exception)  # raised below, but for those that fail as they are cancelled
        pending = set(lanes)
        try:
            while pending and not keeper.done():
                _, pending = await asyncio.wait({*pending, keeper}, return_when=asyncio.FIRST_COMPLETED)
                pending.discard(keeper)
            if not pending and not self._over:
                await self._insisting(lambda: self._jobs.settle(self._job, b"", ()))
        finally:
            self._over = True
            await cancelled({keeper, *lanes})
        for task in {keeper, *lanes}:
            if not task.cancelled():
                task.result()

    async def _keep(self) -> None:
        """Returns when the warm-up is over, or another worker's. While Redis is down nobody can take it."""
        while not self._over:
            await asyncio.sleep(BEAT)
            try:
                if not await self._jobs.hold(self._job, LEASE):
                    return
            except StoreUnavailable:
                continue

    async def _lane(self) -> None:
        while not self._over:
            question = await self._next()
            if question is None:
                return
            warmed = await self._settled(question)
            counts, error = warmed.counts, warmed.error
            going_on = await self._insisting(lambda: self._jobs.settle(self._job, question, counts, error))  # noqa: B023
            self._in_hand.discard(question)
            self._over = self._over or not going_on

    async def _next(self) -> bytes | None:
        """The next question that no lane has in hand; None where there is none."""
        async with self._reading:
            if not self._ahead:
                count = AHEAD + self._concurrency
                left = await self._insisting(lambda: self._jobs.left(self._job, count))
                self._ahead = [question for question in left if question not in self._in_hand]
            if not self._ahead:
                return None
            question = self._ahead.pop(0)
            self._in_hand.add(question)
            return question

    async def _settled(self, text: bytes) -> Warmed:
        """What came of a question, once it is cached or has failed for good."""
        try:
            wanted = WarmQuestion.decoded(text)
        except (ValueError, TypeError):
            return Warmed(("failed",), "a question could not be read")
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._warmer.warm(wanted)
            except (RagherdError, StoreUnavailable, EmbeddingUnavailable) as error:
                seconds = patience(error, attempts)
                if seconds is None:
                    return self._failed(wanted, error)
            except Exception as error:  # noqa: BLE001 - a bug met by one question must not keep the others for ever
                return self._failed(wanted, error)
            await asyncio.sleep(seconds)

    def _failed(self, wanted: WarmQuestion, error: Exception) -> Warmed:
        self._events.warm_up_failed(self._job, f"{type(error).__name__}: {error}")
        return Warmed(("failed",), f"{wanted.question[:SHOWN]}: {error}")

    async def _insisting(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until Redis takes part."""
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(BEAT)
