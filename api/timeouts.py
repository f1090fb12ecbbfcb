"""Timeouts that do not blame others for this worker's own lag.

An event loop that was busy, or had no processor, for longer than a timeout finds two things at once: the timeout has
passed, and the reply has long been in the socket. A plain timeout then wins, and a healthy Redis counts as lost. Here
time is counted in ticks: a tick that comes late counts as one, so the timeout grows by the loop's lag, up to a bound.
Between two ticks the loop reads what has arrived.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, Self

from api.cancellation import CancelScope

TICK_SECONDS: Final = 0.05
"""The tick of a timeout of 0.4 to 2 s; shorter ones have `FEWEST` ticks, longer ones `MANY`."""
FEWEST: Final = 8
MANY: Final = 40
MOST: Final = 4.0
"""A timeout takes at most so many times its length, however much the loop lags; a short one, `MAX_LAG` more."""
MAX_LAG: Final = 5.0
"""Opening a connection takes several rounds of the loop: of one that lags, more than a few times a short timeout."""


class Countdown:
    """Calls `ended` after `seconds` of a loop that runs. `lag`: the seconds that did not count, so far."""

    __slots__ = ("_due", "_ended", "_extended", "_handle", "_last", "_left", "_loop", "_tick", "lag")

    def __init__(self, seconds: float, ended: Callable[[], None]) -> None:
        seconds = max(0.0, seconds)
        self.lag = 0.0
        self._tick = max(min(TICK_SECONDS, seconds / FEWEST), seconds / MANY)
        self._left = max(1, math.ceil(seconds / self._tick)) if self._tick else 1
        self._ended = ended
        self._extended = False
        self._loop = asyncio.get_running_loop()
        now = time.monotonic()
        self._last = now + max(MOST * seconds, seconds + MAX_LAG)
        self._due = now + self._tick
        self._handle: asyncio.Handle = self._loop.call_later(self._tick, self._ticked)

    def cancel(self) -> None:
        """Never calls `ended` from now on. To be called once: the lag is then complete."""
        self._handle.cancel()
        self.lag += max(0.0, time.monotonic() - self._due)

    def _wait(self, now: float) -> None:
        self._due = now + self._tick
        self._handle = self._loop.call_later(self._tick, self._ticked)

    def _ticked(self) -> None:
        now = time.monotonic()
        late = max(0.0, now - self._due)
        self.lag += late
        self._left -= 1
        if now > self._last:
            self._left = min(self._left, 0)
        if self._left > 0:
            self._wait(now)
        elif late > self._tick and not self._extended:
            self._extended = True  # what arrived while the loop stood still has not been read yet
            self._wait(now)
        else:
            self._due = now
            self._handle = self._loop.call_soon(self._ended)  # after those who were woken by what was just read


class LagTimeout(CancelScope):
    """As `asyncio.timeout`: cancels a block (`with`) after `seconds` by a `Countdown`. Raises `TimeoutError`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        super().__enter__()
        self._countdown = Countdown(self._seconds, self.cancel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._countdown.cancel()
        if super().__exit__(kind, error, trace):
            raise TimeoutError from error
        return False


async def wait_with_lag(task: asyncio.Future[Any], seconds: float) -> float:
    """Returns when `task` is done, or after `seconds` by a `Countdown`: the lag. The task goes on either way."""
    waiter = asyncio.get_running_loop().create_future()

    def release(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    countdown = Countdown(seconds, release)
    task.add_done_callback(release)
    try:
        await waiter
    finally:
        countdown.cancel()
        task.remove_done_callback(release)
    return countdown.lag
