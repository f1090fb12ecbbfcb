"""Many questions, one thread that judges: one after the other, since together none would be ready in time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from api.embedders.cross_encoder import Pair
from api.errors import RerankingUnavailable
from api.lag_timeout import LagTimeout

SLICE: Final = 4
"""Pairs that the thread judges at a stretch: so soon it sees that a caller has gone, or that a user waits."""
RECENT: Final = 0.2
"""What the last slice weighs in the time that a pair is expected to take."""


@dataclass(eq=False, slots=True)
class _Call:
    pairs: Sequence[Pair]
    result: asyncio.Future[list[float]]
    verdicts: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return 0 if self.result.done() else len(self.pairs) - len(self.verdicts)


class JudgingLine:
    """Runs `judge` in `thread`, a slice at a time. Who comes first is ready first; users go before background work.

    Who would not be ready in time is told so at once: where more is asked than can be done, some is done, and nobody
    waits for nothing.
    """

    def __init__(self, judge: Callable[[Sequence[Pair]], list[float]], thread: Executor) -> None:
        self._judge = judge
        self._thread = thread
        self._users: deque[_Call] = deque()
        self._background: deque[_Call] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._pair_seconds = 0.0
        self._closed = False

    async def judged(self, pairs: Sequence[Pair], seconds: float, *, background: bool = False) -> list[float]:
        """A verdict for each pair, in order, within `seconds`. Raises `RerankingUnavailable`."""
        if self._closed:
            raise RerankingUnavailable("the re-ranker is closed")
        if not pairs:
            return []
        self._expect_room(len(pairs), seconds, background=background)
        call = _Call(pairs, asyncio.get_running_loop().create_future())
        (self._background if background else self._users).append(call)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        try:
            with LagTimeout(seconds):
                return await call.result
        except TimeoutError as error:
            raise RerankingUnavailable(f"the re-ranker took longer than {seconds:g} s") from error

    async def close(self) -> None:
        """Fails who still waits; a slice that runs in the thread ends there, its result unused."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        for call in (*self._users, *self._background):
            _fail(call, "the re-ranker is closed")

    def _expect_room(self, pairs: int, seconds: float, *, background: bool) -> None:
        """With nobody ahead it is always tried: the time that a pair takes is known from trying alone."""
        ahead = sum(call.left for call in (*self._users, *(self._background if background else ())))
        if ahead and (ahead + pairs) * self._pair_seconds > seconds:
            raise RerankingUnavailable(f"the re-ranker has more to do than {seconds:g} s allow")

    async def _take_turns(self) -> None:
        while (call := self._first()) is not None:
            await self._take(call)

    def _first(self) -> _Call | None:
        """Whose turn it is. Those that have their result, or gave up, leave the line."""
        for line in (self._users, self._background):
            while line and not line[0].left:
                line.popleft()
            if line:
                return line[0]
        return None

    async def _take(self, call: _Call) -> None:
        start = len(call.verdicts)
        pairs = call.pairs[start : start + SLICE]
        began = time.perf_counter()
        try:
            verdicts = await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, pairs)
        except Exception as error:  # noqa: BLE001 - the runtime's errors share no base; the caller must hear of each
            _fail(call, f"the re-ranker failed: {error}")
            return
        self._learn((time.perf_counter() - began) / len(pairs))
        call.verdicts += verdicts
        if len(call.verdicts) == len(call.pairs) and not call.result.done():
            call.result.set_result(call.verdicts)

    def _learn(self, seconds: float) -> None:
        known = self._pair_seconds
        self._pair_seconds = seconds if known == 0 else known + RECENT * (seconds - known)


def _fail(call: _Call, why: str) -> None:
    if not call.result.done():
        call.result.set_exception(RerankingUnavailable(why))
