"""Measures the load of a Redis server between two moments: CPU time of its main thread, commands and bytes.

CPU time instead of wall time, because other load on the machine hardly changes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import redis

CONCURRENCY: Final = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """A server's totals at one moment (seconds, microseconds, bytes)."""

    at: float
    cpu_us: float
    calls: Counter[str]
    bytes_in: int
    bytes_out: int
    connections: int
    memory: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The difference between two samples. `calls`: by command, including those in scripts."""

    seconds: float
    cpu_us: float
    calls: Counter[str]
    bytes_in: int
    bytes_out: int

    def each(self, times: float) -> dict[str, Any]:
        """Divides by `times` for the cost of one operation."""
        return {
            "server_us": round(self.cpu_us / times, 1),
            "commands": round(self.calls.total() / times, 2),
            "bytes_in": round(self.bytes_in / times),
            "bytes_out": round(self.bytes_out / times),
        }


class Server:
    """Samples a server over a separate connection. Its own commands are not counted."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def sample(self) -> Sample:
        info: dict[str, Any] = self.client.info("everything")
        named = {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in info.items() if _counts(name)}
        cpu = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
        traffic = (int(info["total_net_input_bytes"]), int(info["total_net_output_bytes"]))
        connections = int(info["connected_clients"]) - 1
        return Sample(time.monotonic(), cpu * 1e6, Counter(named), *traffic, connections, int(info["used_memory"]))

    def since(self, before: Sample) -> Spent:
        now = self.sample()
        return Spent(
            now.at - before.at,
            now.cpu_us - before.cpu_us,
            now.calls - before.calls,
            now.bytes_in - before.bytes_in,
            now.bytes_out - before.bytes_out,
        )


def _counts(name: str) -> bool:
    return name.startswith("cmdstat_") and name not in {"cmdstat_info", "cmdstat_script|load"}


async def cost_of(server: Server, work: Callable[[], Awaitable[object]], times: int = 3000) -> dict[str, Any]:
    """Returns the server cost of one `work`, with `CONCURRENCY` in parallel."""
    for _ in range(3):
        await work()  # loads scripts and opens connections
    before = server.sample()
    numbers = iter(range(times))

    async def some() -> None:
        for _ in numbers:
            await work()

    await asyncio.gather(*(some() for _ in range(CONCURRENCY)))
    return server.since(before).each(times)
