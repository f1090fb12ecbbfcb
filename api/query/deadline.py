"""The caller's own deadline (`X-Request-Timeout`). Passing it says nothing about Ollama."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.cancel_scope import CancelScope
from api.errors import DeadlinePassed


class Deadline:
    """`seconds` from the making of this object; None for none. Ollama's own deadlines go on beside it."""

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
