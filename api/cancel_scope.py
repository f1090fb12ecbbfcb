"""Cancelling a block of code for good: once may not be enough.

`asyncio.wait_for` of Python 3.11 loses a cancellation that comes just as what it waits for ends, and any library may
call it. A block that was cancelled once would then run to its end for nobody. A `CancelScope` cancels again, at
intervals, until the block has ended. Meanwhile the task counts as cancelled: `raise_if_cancelled` asks for that before
something expensive begins.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from api.background import CANCEL_AGAIN_SECONDS


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
