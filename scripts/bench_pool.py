"""CPU of one request at 1 to 100 connections: the pool of the service against httpx's own, in one run.

`python -m scripts.bench_pool`. The stub runs in a process of its own; what is shown is this process's CPU time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx

from api.ollama.pool import PoolLimits, open_pool
from tests.stub_ollama import stub_process

SIZES = (1, 10, 50, 100)
REQUESTS = 3000
PATH, BODY = "/api/embed", b'{"model": "m", "input": "goat"}'


async def cpu_per_request(call: Callable[[], Awaitable[object]], callers: int) -> float:
    """Milliseconds of CPU for each of `REQUESTS` calls, made by `callers` at a time."""

    async def repeat(times: int) -> None:
        for _ in range(times):
            await call()

    await asyncio.gather(*(repeat(2) for _ in range(callers)))
    began = time.process_time()
    await asyncio.gather(*(repeat(REQUESTS // callers) for _ in range(callers)))
    return (time.process_time() - began) * 1000 / (REQUESTS // callers * callers)


async def ours(base_url: str, size: int) -> float:
    """Through `OllamaPool.exchange`, statistics and all."""
    async with open_pool(base_url, PoolLimits(min_size=0, max_size=size, timeout=60)) as pool:

        async def call() -> None:
            async with pool.exchange(PATH, BODY, model="m") as exchange:
                await exchange.open()
                await exchange.read(65536)

        return await cpu_per_request(call, size)


async def plain(base_url: str, size: int) -> float:
    """Through httpx as it comes."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60) as client:
        return await cpu_per_request(lambda: client.post(PATH, content=BODY), size)


def main() -> None:
    """Prints a table."""
    with stub_process() as stub:
        print("connections   httpx ms   ragherd ms")
        for size in SIZES:
            figures = asyncio.run(plain(stub.base_url, size)), asyncio.run(ours(stub.base_url, size))
            print(f"{size:11} {figures[0]:10.2f} {figures[1]:12.2f}")


if __name__ == "__main__":
    main()
