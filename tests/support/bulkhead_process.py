"""One worker of a fleet in a separate process that has only the bulkhead.

It reads commands as JSON lines and answers each with one. `BreakerProcess` starts and controls it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from api.bulkhead.bulkhead_rules import BulkheadPolicy
from api.bulkhead.fleet_bulkhead import FleetBulkhead, kept_alive
from api.errors import BulkheadFull
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.bulkhead import RedisBulkheadStore
from api.values import Priority, QueuePlace
from tests.support.breaker_process import BreakerProcess, Reply, obey


class Worker:
    """Executes commands."""

    def __init__(self, bulkhead: FleetBulkhead, backend: tuple[str, int]) -> None:
        self.bulkhead = bulkhead
        self.backend = backend
        self.begun: dict[str, asyncio.Task[str]] = {}

    async def call(self, tenant: str, priority: str) -> str:
        """Makes a call of the backend with a permit. Returns `ok`, `failed`, or the reason for no permit."""
        try:
            place = QueuePlace(Priority(priority))
            async with self.bulkhead.permit(tenant, place=place):
                return await self._ask_backend(tenant)
        except BulkheadFull as full:
            return full.reason

    async def _ask_backend(self, tenant: str) -> str:
        reader, writer = await asyncio.open_connection(*self.backend)
        try:
            writer.write(tenant.encode() + b"\n")
            return (await reader.readline()).decode().strip() or "failed"
        finally:
            writer.close()

    async def calls(self, tenant: str, times: int, concurrency: int, priority: str = "user") -> Reply:
        """Makes calls, some in parallel. Returns their outcomes."""
        ends: dict[str, int] = {}
        left = times

        async def some() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                end = await self.call(tenant, priority)
                ends[end] = ends.get(end, 0) + 1

        await asyncio.gather(*(some() for _ in range(concurrency)))
        return {"ends": ends}

    async def begin(self, name: str, tenant: str = "acme", priority: str = "user") -> Reply:
        """Starts a call without waiting for it."""
        self.begun[name] = asyncio.create_task(self.call(tenant, priority))
        return {}

    async def leave(self, name: str) -> Reply:
        """Cancels a call that was started."""
        task = self.begun.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return {}

    async def end(self, name: str) -> Reply:
        """Waits for a call that was started."""
        return {"end": await self.begun.pop(name)}

    async def state(self) -> Reply:
        """Returns what this worker knows."""
        bulkhead = self.bulkhead
        return {"in_use": bulkhead.in_use, "waiting": bulkhead.waiting, "store": bulkhead.store_name}

    async def cost(self, times: int) -> Reply:
        """Returns microseconds of wall and CPU time per permit without contention."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            async with self.bulkhead.permit("acme"):
                pass
        return {
            "wall_us": (time.perf_counter() - wall) / times * 1e6,
            "cpu_us": (time.process_time() - cpu) / times * 1e6,
        }


async def main(url: str, policy: dict[str, Any], backend: tuple[str, int]) -> None:
    worker_id = f"w{os.getpid()}"
    address = RedisAddress(url, timeout=1.0, connect_timeout=0.5, max_connections=64)
    workers = policy.pop("workers")
    chosen = BulkheadPolicy(**policy)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(short_commands(address))
        gate = HealthGatedRedis(client, 64)
        await gate.check()
        watching = asyncio.create_task(gate.watch())
        stack.callback(watching.cancel)
        store = RedisBulkheadStore(gate, partial(blocking_reader, address), Keys(), "ollama", chosen, worker_id)
        bulkhead = FleetBulkhead("ollama", chosen, store, worker_id, live_workers=lambda: workers)
        await stack.enter_async_context(kept_alive(bulkhead))
        await obey(Worker(bulkhead, backend))


async def start_worker(url: str, policy: dict[str, Any], backend: tuple[str, int]) -> BreakerProcess:
    """Starts such a process. `policy` has the number of live `workers` besides the fields of `BulkheadPolicy`."""
    return await BreakerProcess.start(url, policy, backend, module="tests.support.bulkhead_process")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(given["url"], given["policy"], tuple(given["backend"])))
