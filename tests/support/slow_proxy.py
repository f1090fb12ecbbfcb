"""A TCP proxy that delays replies, for a server that is slow but alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class SlowProxy:
    """Forwards requests at once, and replies after `delay` seconds."""

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        self.port = 0
        self._target = (host, port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until either side closes it."""
        replies, requests = await asyncio.open_connection(*self._target)
        ways = [asyncio.create_task(self._pass(reader, requests)), asyncio.create_task(self._delayed(replies, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            requests.close()
            writer.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)

    async def _delayed(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await asyncio.sleep(self.delay)
            target.write(data)


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
