"""A TCP proxy that delays replies, for a server that is slow but alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(client: Ends, server: Ends, delay: Callable[[], float] = lambda: 0.0) -> None:
    """Passes bytes both ways until either side closes, and closes both. Replies are `delay()` seconds late."""
    ways = [asyncio.create_task(_pass(client[0], server[1])), asyncio.create_task(_pass(server[0], client[1], delay))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        server[1].close()
        client[1].close()


async def _pass(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: Callable[[], float] = lambda: 0.0
) -> None:
    try:
        while data := await source.read(65536):
            if seconds := delay():
                await asyncio.sleep(seconds)
            target.write(data)
    except ConnectionError as lost:
        lost.__traceback__ = None  # the reader keeps the error, which refers to the reader


class SlowProxy:
    """Forwards requests at once, and replies after `delay` seconds."""

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        self.port = 0
        self._target = (host, port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until either side closes it."""
        server = await asyncio.open_connection(*self._target)
        await relay((reader, writer), server, lambda: self.delay)


@asynccontextmanager
async def slow_proxy(url: str) -> AsyncIterator[SlowProxy]:
    """Runs a proxy in front of the server at `url` on its own port."""
    parts = urlsplit(url)
    proxy = SlowProxy(parts.hostname or "127.0.0.1", parts.port or 0)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
