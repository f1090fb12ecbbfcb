"""Measures the load of a Redis server between two moments: CPU time of its main thread, commands and bytes.

CPU time instead of wall time, because other load on the machine hardly changes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

CONCURRENCY: Final = 32

Work = Callable[[], Awaitable[object]]


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


async def cost_of(
    server: Server, works: Sequence[Callable[[], Awaitable[object]]], times: int = 3000
) -> dict[str, Any]:
    """Returns the server cost of one work. The works run side by side, each again and again.

    Give each its own client to learn what commands cost that arrive alone. Those of one client arrive in batches.
    """
    await asyncio.gather(*(_loads_and_opens(work) for work in works))
    before = server.sample()
    numbers = iter(range(times))

    async def again(work: Work) -> None:
        for _ in numbers:
            await work()

    await asyncio.gather(*(again(work) for work in works))
    return server.since(before).each(times)


async def _loads_and_opens(work: Work) -> None:
    """Lets the script be loaded and the connection be opened before anything is measured."""
    for _ in range(3):
        await work()
