"""The time that one question may spend on the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from api.cancellation import cancel_and_wait, log_failure, wait_with_lag
from api.errors import DocumentsChanged, StoreUnavailable
from api.ports.question import Timings

T = TypeVar("T")
CLOSE_SECONDS: Final = 2.0
"""Seconds that late commands have to finish when the worker stops."""


class BudgetSpent(StoreUnavailable):
    """The command took too long for its question. It continues in the background."""

    def __init__(self, seconds: float, command: asyncio.Future[Any]) -> None:
        super().__init__(f"the cache took longer than {seconds:g} s for one question")
        self._command = command

    def then(self, ended: Callable[[asyncio.Future[Any]], None]) -> None:
        """Calls `ended` with the command when it ends."""
        self._command.add_done_callback(ended)


class CacheBudget:
    """The time that one question may spend on the cache. It has used `Timings.cache` less this worker's lag."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late: set[asyncio.Task[Any]] = set()

    async def within(self, timings: Timings, command: Coroutine[Any, Any, T]) -> T:
        """Returns the result of `command`. Raises its errors, `BudgetSpent`, and `StoreUnavailable` for a cancellation.

        A late command is not cancelled: cancelling would cost its connection, and slow down a slow store even more.
        It also lets an answer that is being stored reach the cache.
        """
        task = asyncio.create_task(command)
        started = time.perf_counter()
        try:
            timings.lag += await wait_with_lag(task, self._seconds - (timings.cache - timings.lag))
        except BaseException:  # the caller was cancelled
            self._let_go(task)
            raise
        finally:
            timings.cache += time.perf_counter() - started
        if not task.done():
            self._let_go(task)
            raise BudgetSpent(self._seconds, task)
        if task.cancelled():
            raise StoreUnavailable("the command was cancelled")
        return task.result()

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        log_failure(task, StoreUnavailable, DocumentsChanged)

    async def aclose(self) -> None:
        """Waits up to `CLOSE_SECONDS` for late commands, so that answers being stored reach the cache."""
        if self._late:
            await asyncio.wait(self._late, timeout=CLOSE_SECONDS)
        await cancel_and_wait(self._late)
