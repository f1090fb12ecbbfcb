"""Tickets on their way back to the store: at once, off the caller's path, those that come meanwhile together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from api.bulkhead.state import Return
from api.errors import StoreUnavailable

KEPT: Final = 1000
"""Tickets kept for a lost store. Those before them go back by themselves when their lease ends."""

Send = Callable[[Sequence[Return]], Awaitable[None]]


class Returns:
    """Collects what one worker gives back. `sending` is held while something is on its way."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pending: deque[Return] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None
        self.sending = asyncio.Lock()

    def add(self, returned: Return) -> None:
        """Sends it soon; no I/O here."""
        self._pending.append(returned)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="bulkhead-returns")

    async def _drain(self) -> None:
        try:
            while self._pending:
                await self.flush()
        except StoreUnavailable:
            return  # kept: whoever finds the store again flushes

    async def flush(self) -> None:
        """Sends all that is there. Raises `StoreUnavailable`, and keeps it then."""
        async with self.sending:
            await self.send_pending()

    async def send_pending(self) -> None:
        """The same, for one who holds `sending`."""
        batch = list(self._pending)
        if not batch:
            return
        self._pending.clear()
        try:
            await self._send(batch)
        except BaseException:  # also a caller's cancellation: giving back twice does no harm, not at all would
            self._pending.extendleft(reversed(batch))
            raise

    async def aclose(self) -> None:
        """Sends the rest, if the store can be reached."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drain()
