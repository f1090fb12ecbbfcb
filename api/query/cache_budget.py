"""How long the cache may keep one question waiting, all its commands together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from api.errors import DocumentsChanged, StoreUnavailable
from api.query.answered import Stages

T = TypeVar("T")


class CacheBudget:
    """`seconds` for each question; what it has used of them is its `Stages.cache`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late: set[asyncio.Task[Any]] = set()

    async def within(self, stages: Stages, command: Coroutine[Any, Any, T]) -> T:
        """What `command` gives. Raises `StoreUnavailable`: what it raises, and past the budget.

        A command that is late is left to end by itself: to break it off would cost its connection, and a slow store
        would be slower still for the next question. An answer on its way into the cache gets there this way, too.
        """
        task = asyncio.ensure_future(command)
        try:
            with stages.timed("cache"):
                await asyncio.wait((task,), timeout=max(0.0, self._seconds - stages.cache))
        finally:
            if not task.done():
                self._late.add(task)
                task.add_done_callback(self._ended)
        if not task.done():
            raise StoreUnavailable(f"the cache took longer than {self._seconds:g} s for one question")
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        with suppress(StoreUnavailable, DocumentsChanged, asyncio.CancelledError):  # nobody waits for it any more
            task.result()
