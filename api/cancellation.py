"""Background tasks, cancelling a block of code for good, and timeouts that do not blame others for this worker's lag.

`asyncio.wait_for` of Python 3.11 loses a cancellation that comes just as what it waits for ends, and any library may
call it. A block that was cancelled once would then run to its end for nobody. A `CancelScope` cancels again, at
intervals, until the block has ended. Meanwhile the task counts as cancelled: `raise_if_cancelled` asks for that before
something expensive begins.

An event loop that was busy, or had no processor, for longer than a timeout finds two things at once: the timeout has
passed, and the reply has long been in the socket. A plain timeout then wins, and a healthy Redis counts as lost. A
`Countdown` counts time in ticks: a tick that comes late counts as one, so the timeout grows by the loop's lag, up to a
bound. Between two ticks the loop reads what has arrived.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVarTuple

import structlog

from api.errors import DeadlinePassed

Of = TypeVarTuple("Of")
RESTART_SECONDS: Final = 1.0
CANCEL_AGAIN_SECONDS: Final = 0.1


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and returns when they have ended, however they ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which redis-py sends through, loses a cancellation that comes
    just when what it waits for is done. A loop would then go on for ever, and its worker would never end.
    """
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        let_go(task)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


def let_go(task: asyncio.Future[Any], *expected: type[BaseException]) -> None:
    """For a task that may fail when nobody awaits it any more: its error is logged here, and not by asyncio.

    What is `expected` is somebody else's to tell, or nobody's.
    """
    task.add_done_callback(partial(_ended, expected=expected))


def _ended(task: asyncio.Future[Any], expected: tuple[type[BaseException], ...]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, expected):
        log = structlog.get_logger("ragherd.background")
        log.warning("unawaited_task_failed", task=_name(task), error=str(error) or type(error).__name__, exc_info=error)


def _name(task: asyncio.Future[Any]) -> str:
    return task.get_name() if isinstance(task, asyncio.Task) else type(task).__name__


class Background:
    """A context that runs tasks for as long as it is open. One that fails is logged and started again."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("ragherd.background")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancelled(self._tasks)

    def start(self, forever: Callable[[*Of], Coroutine[Any, Any, None]], *of: *Of) -> None:
        """Runs `forever(*of)`, which is not meant to return."""
        name = f"{forever.__module__}.{forever.__qualname__}"
        self._tasks.append(asyncio.create_task(self._keep(name, forever, *of), name=name))

    async def _keep(self, name: str, forever: Callable[[*Of], Coroutine[Any, Any, None]], *of: *Of) -> None:
        while True:
            try:
                await forever(*of)
            except Exception:  # noqa: BLE001 - a bug in one background task must not end heartbeats and counters
                self._log.exception("background_task_failed", task=name)
            await asyncio.sleep(RESTART_SECONDS)


def raise_if_cancelled() -> None:
    """Raises `CancelledError` in a task that has been cancelled, even where the cancellation was lost on its way."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class CancelScope:
    """A block (`with`) that `cancel` ends early. Its own `CancelledError` stays inside: ask `cancelled` afterwards.

    An error that the block raises instead goes on. The cancellation of the whole task by somebody else does, too.
    """

    cancelled = False
    """Whether `cancel` was called before the block ended."""
    _task: asyncio.Task[object] | None = None
    _before = 0
    _cancels = 0
    _again: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None, "a scope belongs to a task"
        self._before = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(self._cancels):
            task.uncancel()
        return self.cancelled and kind is asyncio.CancelledError and task.cancelling() <= self._before

    def cancel(self) -> None:
        """Cancels the block; does nothing before it begins, after it has ended, and the second time."""
        if self._task is not None and not self.cancelled:
            self.cancelled = True
            self._cancel()

    def _cancel(self) -> None:
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._again = asyncio.get_running_loop().call_later(CANCEL_AGAIN_SECONDS, self._cancel)


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


class Deadline:
    """The caller's own deadline (`X-Request-Timeout`): `seconds` from now, None for no deadline.

    Ollama's deadlines apply as well. Passing this one says nothing about Ollama.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Around a wait, never around a `yield`: past the deadline the wait is cancelled. Raises `DeadlinePassed`.

        A wait that begins late is not begun. What it brings too late is not used.
        """
        if self._at is None:
            yield
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._at:
            raise self._passed()
        with CancelScope() as scope:
            timer = loop.call_at(self._at, scope.cancel)
            try:
                yield
            finally:
                timer.cancel()
        if scope.cancelled:
            raise self._passed()

    def _passed(self) -> DeadlinePassed:
        return DeadlinePassed(f"The answer took longer than the {self._seconds:g} s of the request.")
