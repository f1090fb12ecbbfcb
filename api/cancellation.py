"""Background tasks, reliable cancellation, and timeouts that extend when this worker's event loop lags.

One call of `Task.cancel` may not be enough. In Python 3.11 `asyncio.wait_for` loses a cancellation that arrives just as
the awaited future completes, and any library may call it. The block would then run to its end although nobody waits for
it. `cancel_and_wait` and `CancelScope` therefore cancel again, at intervals, until the task or block has ended. In the
meantime the task counts as cancelled: call `raise_if_cancelled` before an expensive step.

When the event loop was blocked for longer than a timeout, it finds two things at once: the timeout has passed, and the
reply has been in the socket for a while. A plain timeout wins, and a healthy Redis counts as down. A `Countdown` counts
ticks instead. A late tick counts as one tick, so the timeout grows by the loop's lag, up to a limit. Between two ticks
the loop reads what has arrived.
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


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels `tasks` repeatedly and returns when all have ended, with any outcome."""
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        log_failure(task)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


def log_failure(task: asyncio.Future[Any], *expected: type[BaseException]) -> None:
    """Logs the exception of a task that nobody awaits, instead of leaving it to asyncio. `expected` exceptions are not
    logged.
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
    """A context manager that runs tasks while it is open. A task that fails is logged and restarted."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("ragherd.background")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel_and_wait(self._tasks)

    def start(self, forever: Callable[[*Of], Coroutine[Any, Any, None]], *of: *Of) -> None:
        """Runs `forever(*of)`, which should never return."""
        name = f"{forever.__module__}.{forever.__qualname__}"
        self._tasks.append(asyncio.create_task(self._keep(name, forever, *of), name=name))

    async def _keep(self, name: str, forever: Callable[[*Of], Coroutine[Any, Any, None]], *of: *Of) -> None:
        while True:
            try:
                await forever(*of)
            except Exception:  # noqa: BLE001 - a bug in one task must not stop heartbeats and counters
                self._log.exception("background_task_failed", task=name)
            await asyncio.sleep(RESTART_SECONDS)


def raise_if_cancelled() -> None:
    """Raises `CancelledError` if the current task has been cancelled, even if that cancellation was lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def is_own_cancellation() -> bool:
    """Whether the current task was cancelled. If not, a `CancelledError` comes from what it waits for: a failure."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class CancelScope:
    """A block (`with`) that `cancel` ends early.

    The scope swallows the `CancelledError` that it caused; check `cancelled` afterwards. Other exceptions of the block
    and cancellations of the whole task propagate.
    """

    cancelled = False
    """True if `cancel` was called before the block ended."""
    _task: asyncio.Task[object] | None = None
    _before = 0
    _cancels = 0
    _again: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None, "a scope needs a running task"
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
        if self.cancelled and isinstance(error, asyncio.CancelledError) and task.cancelling() <= self._before:
            error.__traceback__ = None  # its frames keep the block's locals, which may refer to the error
            return True
        return False

    def cancel(self) -> None:
        """Cancels the block. Does nothing before the block begins, after it has ended, or if called again."""
        if self._task is not None and not self.cancelled:
            self.cancelled = True
            self._cancel()

    def _cancel(self) -> None:
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._again = asyncio.get_running_loop().call_later(CANCEL_AGAIN_SECONDS, self._cancel)


TICK_SECONDS: Final = 0.05
"""The tick of timeouts from 0.4 to 2 s. Shorter timeouts have `MIN_TICKS` ticks, longer ones `MAX_TICKS`."""
MIN_TICKS: Final = 8
MAX_TICKS: Final = 40
MAX_STRETCH: Final = 4.0
"""A timeout lasts at most this multiple of its length, or `MIN_EXTENSION_SECONDS` more if that is longer."""
MIN_EXTENSION_SECONDS: Final = 5.0
"""Opening a connection takes several iterations of the loop. When the loop lags, they exceed a multiple of a short
timeout.
"""


class Countdown:
    """Calls `ended` after `seconds` of running event loop. `lag` is the time, in seconds, that did not count so far."""

    __slots__ = (
        "_due",
        "_ended",
        "_extended",
        "_handle",
        "_last",
        "_left",
        "_longest",
        "_loop",
        "_tick",
        "_ticks",
        "lag",
    )

    def __init__(self, seconds: float, ended: Callable[[], None]) -> None:
        seconds = max(0.0, seconds)
        self.lag = 0.0
        self._tick = max(min(TICK_SECONDS, seconds / MIN_TICKS), seconds / MAX_TICKS)
        self._left = self._ticks = max(1, math.ceil(seconds / self._tick)) if self._tick else 1
        self._longest = max(MAX_STRETCH * seconds, seconds + MIN_EXTENSION_SECONDS)
        self._ended = ended
        self._extended = False
        self._loop = asyncio.get_running_loop()
        now = time.monotonic()
        self._last = now + self._longest
        self._due = now + self._tick
        self._handle: asyncio.Handle = self._loop.call_later(self._tick, self._ticked)

    def restart(self) -> None:
        """Starts the countdown again. The tick in progress does not count, so it may end up to one tick late."""
        now = time.monotonic()
        self._last = now + self._longest
        if self._left <= 0:  # it is about to end
            self._handle.cancel()
            self._wait(now)
        self._left, self._extended = self._ticks + 1, False

    def cancel(self) -> None:
        """Prevents the call of `ended` and completes `lag`. Call it once."""
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
            self._extended = True  # what arrived while the loop was blocked has not been read yet
            self._wait(now)
        else:
            self._due = now
            self._handle = self._loop.call_soon(self._ended)  # after the tasks that the last read woke up


class LagTimeout(CancelScope):
    """Cancels a block (`with`) after `seconds` of a `Countdown`. Raises `TimeoutError`, like `asyncio.timeout`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        super().__enter__()
        self._countdown = Countdown(self._seconds, self.cancel)
        return self

    def restart(self) -> None:
        """Gives the block its full time again."""
        self._countdown.restart()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._countdown.cancel()
        del self._countdown  # the two refer to each other, and only the garbage collector would free them
        if super().__exit__(kind, error, trace):
            raise TimeoutError from error
        return False


async def wait_with_lag(task: asyncio.Future[Any], seconds: float) -> float:
    """Waits for `task` for up to `seconds` of a `Countdown` and returns the lag in seconds. Never cancels the task."""
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

        Does not begin a wait after the deadline, and ignores a result that arrives after it.
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
