"""How long the cache may keep one question waiting, all its commands together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from api.background import cancelled, let_go
from api.errors import DocumentsChanged, StoreUnavailable
from api.lag_timeout import wait_with_lag
from api.query.answered import Stages

T = TypeVar("T")
CLOSE_SECONDS: Final = 2.0
"""How long commands that are late have to end when the worker does."""


class BudgetSpent(StoreUnavailable):
    """The command took too long for its question, and goes on."""

    def __init__(self, seconds: float, command: asyncio.Future[Any]) -> None:
        super().__init__(f"the cache took longer than {seconds:g} s for one question")
        self._command = command

    def then(self, ended: Callable[[asyncio.Future[Any]], None]) -> None:
        """Calls `ended` with the command once that has."""
        self._command.add_done_callback(ended)


class CacheBudget:
    """`seconds` for each question; what it has used of them is its `Stages.cache`, less this worker's own lag."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late: set[asyncio.Task[Any]] = set()

    async def within(self, stages: Stages, command: Coroutine[Any, Any, T]) -> T:
        """What `command` gives. Raises what it raises, and `BudgetSpent`.

        A command that is late is left to end by itself: to break it off would cost its connection, and a slow store
        would be slower still for the next question. An answer on its way into the cache gets there this way, too.
        """
        task = asyncio.create_task(command)
        try:
            with stages.timed("cache"):
                stages.lag += await wait_with_lag(task, self._seconds - (stages.cache - stages.lag))
        except BaseException:  # a caller that leaves
            self._let_go(task)
            raise
        if not task.done():
            self._let_go(task)
            raise BudgetSpent(self._seconds, task)
        return task.result()

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        let_go(task, StoreUnavailable, DocumentsChanged)

    async def aclose(self) -> None:
        """Waits for what is late, so that an answer on its way into the cache gets there; `CLOSE_SECONDS` at most."""
        if self._late:
            await asyncio.wait(self._late, timeout=CLOSE_SECONDS)
        await cancelled(self._late)
