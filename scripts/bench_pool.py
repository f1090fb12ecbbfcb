"""Measures CPU and wall time per request with 1 to 100 connections: the service's pool compared with httpx's own.

    .venv/bin/python -m scripts.bench_pool

The stub runs in another process. CPU time is this process only. Wall time is the inverse of the throughput and includes
the stub.
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


Times = tuple[float, float]


async def per_request(call: Callable[[], Awaitable[object]], callers: int) -> Times:
    """Returns milliseconds of CPU and wall time per call, for `REQUESTS` calls by `callers` in parallel."""

    async def repeat(times: int) -> None:
        for _ in range(times):
            await call()

    await asyncio.gather(*(repeat(2) for _ in range(callers)))
    began, began_wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(repeat(REQUESTS // callers) for _ in range(callers)))
    calls = REQUESTS // callers * callers
    return (time.process_time() - began) * 1000 / calls, (time.perf_counter() - began_wall) * 1000 / calls


async def ours(base_url: str, size: int) -> Times:
    """Measures `OllamaPool.exchange`, with its statistics."""
    async with open_pool(base_url, PoolLimits(min_size=0, max_size=size, timeout=60)) as pool:

        async def call() -> None:
            async with pool.exchange(PATH, BODY, model="m") as exchange:
                await exchange.open()
                await exchange.read(65536)

        return await per_request(call, size)


async def plain(base_url: str, size: int) -> Times:
    """Measures plain httpx."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60) as client:
        return await per_request(lambda: client.post(PATH, content=BODY), size)


def main() -> None:
    """Prints the table."""
    with stub_process() as stub:
        print("connections   httpx: CPU ms, wall ms   ragherd: CPU ms, wall ms")
        for size in SIZES:
            figures = asyncio.run(plain(stub.base_url, size)), asyncio.run(ours(stub.base_url, size))
            (cpu, wall), (our_cpu, our_wall) = figures
            print(f"{size:11} {cpu:13.2f} {wall:9.2f} {our_cpu:17.2f} {our_wall:9.2f}")


if __name__ == "__main__":
    main()
