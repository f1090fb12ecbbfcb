"""A worker's background tasks: started with it, cancelled with it, and never silently dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self

import structlog

RESTART_SECONDS: Final = 1.0


CANCEL_AGAIN_SECONDS: Final = 0.1


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and returns when they have ended, however they ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which redis-py sends through, loses a cancellation that comes
    just when what it waits for is done. A loop would then go on for ever, and its worker would never end.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


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

    def start(self, forever: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `forever`, which is not meant to return."""
        self._tasks.append(asyncio.create_task(self._keep(forever), name=forever.__qualname__))

    async def _keep(self, forever: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await forever()
            except Exception:  # noqa: BLE001 - a bug in one background task must not end heartbeats and counters
                self._log.exception("background_task_failed", task=forever.__qualname__)
            await asyncio.sleep(RESTART_SECONDS)
