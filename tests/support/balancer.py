"""A TCP load balancer on this machine, as a Service of Kubernetes is one: new connections go to ready replicas only,
and established connections stay where they are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from tests.support.slow_proxy import relay

Address = tuple[str, int]


class Balancer:
    """Forwards each connection to the next replica. Set the replicas at any time, from any thread."""

    def __init__(self) -> None:
        self.url = ""
        self.failures: list[tuple[float, str]] = []
        """Connections without a replica: when (s of the monotonic clock), and why."""
        self._replicas: tuple[Address, ...] = ()
        self._turn = 0

    def send_to(self, urls: Sequence[str]) -> None:
        """Sends new connections to these replicas from now on."""
        parts = [urlsplit(url) for url in urls]
        self._replicas = tuple((one.hostname or "", one.port or 0) for one in parts)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until either side closes it."""
        self._turn += 1
        replicas = self._replicas
        try:
            server = await asyncio.open_connection(*replicas[self._turn % len(replicas)])
        except (OSError, ZeroDivisionError) as error:
            self.failures.append((time.monotonic(), str(error) if replicas else "no replica is ready"))
        else:
            with suppress(OSError):
                await relay((reader, writer), server)
        writer.close()


@contextmanager
def running_balancer(port: int = 0) -> Iterator[Balancer]:
    """Runs a balancer in a thread."""
    balancer, listening = Balancer(), threading.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        server = await asyncio.start_server(balancer.serve, "127.0.0.1", port)
        balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        listening.set()
        await ended.wait()
        server.close()

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert listening.wait(5)
    try:
        yield balancer
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(5)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
