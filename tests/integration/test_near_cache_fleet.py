"""Eight workers with near caches never serve what was invalidated 50 ms ago, whatever stands still or is cut off.

Four workers reach Redis through a proxy that can stop forwarding, four reach it directly.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns

pytestmark = [pytest.mark.processes, pytest.mark.alone]

PROMISE: Final = 0.05
"""Seconds after an invalidating call returned. A later question gets no copy of what was invalidated."""
STANDSTILL: Final = 0.2
"""Seconds from the invalidation to the questions that are asked before a standstill ends."""
WORKERS: Final = 4
BODY: Final = json.dumps({"question": "Which version is it?"}).encode()
HEAD: Final = f"POST /query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
REQUEST: Final = HEAD.encode() + b"\r\n\r\n" + BODY
ROUNDS: Final = ("none", "stopped", "partition", "no messages", "stopped and flushed", "cut", "partition and flushed")


class HaltingProxy:
    """A TCP proxy that can stop forwarding, for all connections or only for those with invalidation messages."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.connections: set[asyncio.StreamWriter] = set()
        self.flows = {False: asyncio.Event(), True: asyncio.Event()}
        """Whether bytes flow, by whether the connection tracks changes."""
        self._target = (host, port)
        self._tracking: set[asyncio.StreamWriter] = set()
        self.flow()

    def halt(self, *, all_of_them: bool) -> None:
        """Forwards no more bytes, either way."""
        self.flows[True].clear()
        if all_of_them:
            self.flows[False].clear()

    def flow(self) -> None:
        """Forwards again, and first what was held back."""
        for event in self.flows.values():
            event.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a connection until either side closes it."""
        from_redis, to_redis = await asyncio.open_connection(*self._target)
        self.connections.add(writer)
        ways = [self._pass(reader, to_redis, writer), self._pass(from_redis, writer, writer)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.connections.discard(writer)
        to_redis.close()
        writer.close()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, connection: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(65536):
            if b"TRACKING" in data:
                self._tracking.add(connection)
            await self.flows[connection in self._tracking].wait()
            target.write(data)


@asynccontextmanager
async def halting_proxy(url: str) -> AsyncIterator[HaltingProxy]:
    """Runs the proxy in front of the server at `url`."""
    parts = urlsplit(url)
    proxy = HaltingProxy(parts.hostname or "127.0.0.1", parts.port or 0)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for connection in list(proxy.connections):
            connection.close()


class Served(NamedTuple):
    """An answer that went out. `sent`: when it was asked for, in seconds."""

    worker: str
    sent: float
    version: int
    is_near: bool


class Client:
    """One connection to one worker, which gets the same question again and again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self) -> Served:
        """Asks once."""
        sent = time.monotonic()
        self._writer.write(REQUEST)
        head_lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        assert head_lines[0].startswith("http/1.1 200"), head_lines[0]
        headers = dict(line.split(": ", 1) for line in head_lines[1:] if line)
        body = json.loads(await self._reader.readexactly(int(headers["content-length"])))
        near = "exact-near" in headers["cache-status"]
        return Served(headers["x-worker"], sent, int(body["answer"].split()[-1]), near)

    def close(self) -> None:
        """Closes the connection."""
        self._writer.close()


class Traffic:
    """Asks each worker the same question all the time, and keeps what it was answered."""

    def __init__(self) -> None:
        self.served: list[Served] = []

    async def clients(self, gunicorn: Gunicorn) -> dict[str, list[Client]]:
        """Returns two connections to each worker."""
        host, port = urlsplit(gunicorn.url()).netloc.split(":")
        found: defaultdict[str, list[Client]] = defaultdict(list)
        async with asyncio.timeout(60):
            while len(found) < WORKERS or min(map(len, found.values())) < 2:
                client = Client(*await asyncio.open_connection(host, port))
                found[(await client.ask()).worker].append(client)
        return dict(found)

    async def keep_asking(self, client: Client) -> None:
        """Asks until cancelled."""
        while True:
            self.served.append(await client.ask())
            await asyncio.sleep(0.004)

    async def all_are_near(self, version: int, workers: set[str]) -> None:
        """Waits until each worker has served a copy of this version."""
        async with asyncio.timeout(60):
            seen: set[str] = set()
            at = len(self.served)
            while seen != workers:
                seen |= {one.worker for one in self.served[at:] if one.is_near and one.version == version}
                await asyncio.sleep(0.01)


@pytest.fixture
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


class Fleet:
    """Two masters on one Redis, and what can happen to them."""

    def __init__(self, proxy: HaltingProxy, cut_off: Gunicorn, direct: Gunicorn, redis: Redis) -> None:
        self.proxy = proxy
        self.cut_off = cut_off
        self.direct = direct
        self._redis = redis

    @asynccontextmanager
    async def fault(self, kind: str) -> AsyncIterator[None]:
        """Lets something stand still for the block."""
        stopped = list(self.cut_off.workers()) if "stopped" in kind else []
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        if "partition" in kind or kind == "no messages":
            self.proxy.halt(all_of_them=kind != "no messages")
        if kind == "cut":
            for connection in list(self.proxy.connections):
                connection.close()
        try:
            yield
        finally:
            self.proxy.flow()
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    async def invalidate(self, kind: str) -> float:
        """Invalidates all answers, and returns when that was done."""
        if "flushed" in kind:
            await self._redis.flushall()
        else:
            async with httpx.AsyncClient(timeout=20, trust_env=False) as client, asyncio.timeout(60):
                while not await self._deleted(client):  # a busy machine may take Redis for lost
                    await asyncio.sleep(0.01)
        return time.monotonic()

    async def _deleted(self, client: httpx.AsyncClient) -> bool:
        url = f"{self.direct.url()}/api/semantic-cache"
        return (await client.delete(url, params={"tenant": "default"})).status_code == 200


def too_late(served: list[Served], returned: dict[int, float]) -> list[tuple[float, Served]]:
    """Returns the answers to questions that were asked after their invalidation, with how much later."""
    return [
        (one.sent - at, one)
        for one in served
        for version, at in returned.items()
        if one.version <= version and one.sent > at + PROMISE
    ]


async def test_no_copy_outlives_its_invalidation(
    redis: Redis, redis_url: str, ollama: StubProcess, tmp_path: Path
) -> None:
    traffic, returned = Traffic(), dict[int, float]()
    async with halting_proxy(redis_url) as proxy:
        with gunicorns("api.asgi:app", tmp_path) as begin:
            shared = {"OLLAMA_BASE_URL": ollama.base_url, "WORKERS": str(WORKERS)}
            shared |= {"SEMANTIC_CACHE_NEAR_BYTES": "1000000"}
            shared |= {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "1", "BULKHEAD_MAX_CONCURRENT": "64"}
            urls = (f"redis://127.0.0.1:{proxy.port}", redis_url)
            cut_off, direct = [
                await asyncio.to_thread(begin, **shared, REDIS_URL=url, METRICS_PORT=free_port()) for url in urls
            ]
            fleet = Fleet(proxy, cut_off, direct, redis)
            ollama.behaviour(answer="version 0")
            clients = {**await traffic.clients(fleet.cut_off), **await traffic.clients(fleet.direct)}
            asking = [asyncio.create_task(traffic.keep_asking(client)) for client, *_ in clients.values()]
            for version, kind in enumerate(ROUNDS):
                await traffic.all_are_near(version, set(clients))
                async with fleet.fault(kind):
                    await asyncio.to_thread(ollama.behaviour, answer=f"version {version + 1}")
                    returned[version] = await fleet.invalidate(kind)
                    await asyncio.sleep(STANDSTILL)
                    late = asyncio.gather(*(client.ask() for _, client, *_ in clients.values()))
                    await asyncio.sleep(PROMISE)  # the questions wait for workers that stand still
                traffic.served += await late
            await traffic.all_are_near(len(ROUNDS), set(clients))
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            for client in chain(*clients.values()):
                client.close()
    assert too_late(traffic.served, returned) == []
