"""Measures the load of idle fleets on Redis: real fleets of a few workers, and hundreds of workers as tasks of a
process.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from api.cancellation import cancel_and_wait
from api.errors import StoreUnavailable
from api.redis_store.stores.fleet import FULL_PACE_WORKERS, SLOWEST
from scripts.costs.operations import EMBEDDER, opened
from scripts.costs.server import Server
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.waiting import wait_until

STARTING_SECONDS: Final = 240.0
SETTLED_SECONDS: Final = 6.0
WARMING_SECONDS: Final = 3.0
SECONDS: Final = 20.0


def real(url: str, ollama: str, server: Server, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Starts idle gunicorns of each size. Returns their commands per second, CPU, connections and memory."""
    found = []
    for size in sizes:
        server.client.flushall()
        wait_until(lambda: server.sample().connections == 0, timeout=STARTING_SECONDS)
        memory = server.sample().memory
        with tempfile.TemporaryDirectory() as folder, gunicorns("api.asgi:app", Path(folder)) as begin:
            settings = {"REDIS_URL": url, "OLLAMA_BASE_URL": ollama, "EMBEDDER": "onnx", "OLLAMA_WARM_UP": "false"}
            gunicorn = begin(ready=False, **settings, WORKERS=str(size))
            wait_until(lambda size=size: server.client.zcard("rag:workers") == size, timeout=STARTING_SECONDS)  # type: ignore[misc]
            time.sleep(SETTLED_SECONDS)
            found.append({"workers": size, **_idle(server, gunicorn, size, memory)})
    return found


def _idle(server: Server, gunicorn: Gunicorn, size: int, memory: int) -> dict[str, Any]:
    before, worked = server.sample(), cpu_seconds(gunicorn.workers())
    time.sleep(SECONDS)
    spent = server.since(before)
    each = size * spent.seconds
    return {
        "commands": round(spent.calls.total() / each, 2),
        "server_us": round(spent.cpu_us / each),
        "bytes_in": round(spent.bytes_in / each),
        "bytes_out": round(spent.bytes_out / each),
        "worker_us": round((cpu_seconds(gunicorn.workers()) - worked) * 1e6 / each),
        "connections": round(before.connections / size, 2),
        "memory": round((before.memory - memory) / size),
        "calls": {name: round(calls / each, 3) for name, calls in sorted(spent.calls.items()) if calls},
    }


def virtual(url: str, server: Server, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Runs the idle operations of many workers in one process, and measures the load on a busy server.

    `share`: the share of the expected operations that ran; less than 1 if the process could not keep up.
    """
    return [asyncio.run(_virtual(url, server, size)) for size in sizes]


async def _virtual(url: str, server: Server, size: int) -> dict[str, Any]:
    pace = min(max(1.0, size / FULL_PACE_WORKERS), SLOWEST)
    async with AsyncExitStack() as stack, Redis.from_url(url) as client:
        await client.flushall()
        workers = [await stack.enter_async_context(opened(url, number)) for number in range(size)]
        for worker in workers:
            await worker.index.ensure(EMBEDDER)
        done = 0

        async def repeated(work: Any, every: float) -> None:
            nonlocal done
            await asyncio.sleep(every * random.random())
            while True:
                with suppress(StoreUnavailable):  # as the loops of real workers do
                    await work()
                    done += 1
                await asyncio.sleep(every * random.uniform(0.8, 1.2))

        idle = [
            (work, every * (pace if look else 1))
            for worker in workers
            for work, every, look in worker.all().values()
            if every
        ]
        tasks = [asyncio.create_task(repeated(work, every)) for work, every in idle]
        tasks += [asyncio.create_task(worker.gate.watch()) for worker in workers]
        await asyncio.sleep(WARMING_SECONDS)
        before, began = server.sample(), done
        await asyncio.sleep(SECONDS / 2)
        spent = server.since(before)
        await cancel_and_wait(tasks)
    rate, wanted = (done - began) / spent.seconds / size, sum(1 / every for _, every in idle) / size
    return {
        "workers": size,
        "operations": round(rate, 2),
        "share": round(rate / wanted, 3),
        "server_us": round(spent.cpu_us / spent.seconds / size),
    }


def cpu_seconds(processes: set[int]) -> float:
    """Returns the user and system time of the processes so far."""
    ticks = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in processes)
    return sum(int(user) + int(system) for user, system in ticks) / 100
