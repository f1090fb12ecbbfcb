"""The sending of an event stream: one writer at a time, a sign of life while nothing flows, patience with an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.types import Message, Send

from api.background import let_go
from api.endpoints.disconnects import ClientLeft


@dataclass(frozen=True, slots=True)
class Streaming:
    """Seconds. `heartbeat`: without a byte until a comment is sent. `stall`: that a reader may take nothing."""

    heartbeat: float = 15.0
    stall: float = 60.0


class EventWire:
    """One response. What the reader has not taken yet makes the next `send` wait: nothing is queued here.

    `sign_of_life`: what a heartbeat sends; None for a format that has nothing for it.
    """

    def __init__(self, send: Send, streaming: Streaming, sign_of_life: bytes | None = KEEPALIVE_COMMENT) -> None:
        self._send = send
        self._streaming = streaming
        self._sign_of_life = sign_of_life
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0
        self.is_open = False

    @asynccontextmanager
    async def opened(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> AsyncIterator[None]:
        """Begins the response; heartbeats go on while the block runs."""
        self.is_open = True
        await self._write({"type": "http.response.start", "status": status, "headers": headers})
        if self._sign_of_life is None:
            yield
            return
        heartbeats = asyncio.create_task(self._keep_alive(self._sign_of_life))
        let_go(heartbeats, OSError)  # the next to send finds out
        try:
            yield
        finally:
            heartbeats.cancel()

    async def send(self, chunk: bytes) -> None:
        """Raises `ClientLeft` for a reader that takes nothing for too long."""
        await self._write({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Ends the response."""
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, message: Message) -> None:
        async with self._writing:
            stalled = asyncio.timeout(self._streaming.stall)
            try:
                async with stalled:
                    await self._send(message)
            except TimeoutError as error:
                if not stalled.expired():
                    raise
                raise ClientLeft from error
            self._sent_at = self._loop.time()

    async def _keep_alive(self, sign_of_life: bytes) -> None:
        while True:
            silent = self._loop.time() - self._sent_at
            if silent >= self._streaming.heartbeat:
                with suppress(ClientLeft):  # whoever sends next finds out
                    await self.send(sign_of_life)
                silent = 0.0
            await asyncio.sleep(self._streaming.heartbeat - silent)
