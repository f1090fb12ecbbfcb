"""Outcomes on their way to the store, in order: failures at once, successes and rejections a moment later, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import groupby
from operator import itemgetter

from api.background import let_go
from api.breaker.state import Outcome

COALESCE_SECONDS = 0.25

Send = Callable[[int, str, list[Outcome], int], Awaitable[None]]


class Reports:
    """Collects the outcomes of one worker. A first success goes out at once, those right behind it together."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._outcomes: list[tuple[int, Outcome]] = []
        self._rejected = 0
        self._sending = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None

    async def add(self, epoch: int, outcome: Outcome, *, at_once: bool) -> None:
        """Queues an outcome of a call admitted in `epoch`; with `at_once` it is sent when this returns."""
        self._outcomes.append((epoch, outcome))
        if at_once:
            await self.flush()
        else:
            self._flush_soon()

    def rejected(self) -> None:
        """Counts a call that was not admitted."""
        self._rejected += 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_while_busy())
            let_go(self._timer)

    async def _flush_while_busy(self) -> None:
        while self._outcomes or self._rejected:
            await self.flush()
            await asyncio.sleep(COALESCE_SECONDS)

    async def flush(self) -> None:
        """Sends all that is waiting, after what is already on its way. A caller's cancellation loses nothing."""
        if self._outcomes or self._rejected or self._sending.locked():
            task = asyncio.create_task(self._flush())
            let_go(task, Exception)  # raised here, unless the caller leaves
            await asyncio.shield(task)

    async def _flush(self) -> None:
        async with self._sending:
            outcomes, self._outcomes = self._outcomes, []
            rejected, self._rejected = self._rejected, 0
            for epoch, group in groupby(outcomes, key=itemgetter(0)):
                await self._send(epoch, "", [outcome for _, outcome in group], rejected)
                rejected = 0
            if rejected:
                await self._send(0, "", [], rejected)

    async def aclose(self) -> None:
        """Sends the rest and stops."""
        if self._timer is not None:
            self._timer.cancel()
        await self.flush()
