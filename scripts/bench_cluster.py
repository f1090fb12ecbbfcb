"""Compares lookups and stores on a Redis Cluster of three servers (16 partitions) with one Redis: calls per second,
CPU.

    .venv/bin/python -m scripts.bench_cluster [ENTRIES]

Two client processes run the cache's Redis adapter with 48 tenants, 384-dimensional vectors and the index that the
settings would choose. If clients and servers share few cores, calls per second say little about three hosts. The server
CPU per call, and how evenly the shards share it, then say more.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.pool import Pool
from typing import Any, Final

import numpy as np
import redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.ports.answer_cache import NewAnswer
from api.redis_store.client import RedisAddress, open_client
from api.redis_store.health_gated import RedisHealthEvents
from api.redis_store.keys import Keys
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import EmbedderIdentity, Usage
from tests.support.redis_cluster import running_cluster

ENTRIES: Final = 9_600
TENANTS: Final = 48
PARTITIONS: Final = 16
DIMENSION: Final = 384
CLIENTS: Final = 2
CONCURRENCY: Final = 16
CALLS: Final = 4_000
HOUR: Final = 3_600_000
"""Milliseconds."""
ROUNDS: Final = 3
EMBEDDER: Final = EmbedderIdentity("bench", DIMENSION, "benchbench")
WORKS: Final = ("exact hit", "semantic look-up", "store")


@dataclass(frozen=True, slots=True)
class Target:
    """The server: a `cluster` with 16 partitions, or one Redis with one."""

    url: str
    cluster: bool
    entries: int

    @property
    def keys(self) -> Keys:
        return Keys("rag:", PARTITIONS if self.cluster else 1, self.cluster)

    @property
    def size(self) -> int:
        """Maximum entries per partition. It exceeds the stored number, so nothing is evicted."""
        return 4 * self.entries // self.keys.cache_partitions


class Client:
    """The cache adapter of one worker."""

    def __init__(self, target: Target, gate: Any, seed: int) -> None:
        self.target = target
        # The index that the settings choose for a nearly full cache.
        algorithm = algorithm_for(target.entries // target.keys.cache_partitions)
        self.indexes = SemanticIndexes(gate, target.keys, algorithm)
        counters = CacheCounters(gate, target.keys, "w")
        self.cache = RedisAnswerCache(
            gate, target.keys, self.indexes, counters, ttl_ms=HOUR, stale_ms=HOUR, max_size=target.size
        )
        self._source = np.random.default_rng(seed)
        vectors = self._source.standard_normal((512, DIMENSION)).astype(np.float32)
        self._vectors = [bytes(v.tobytes()) for v in vectors / np.linalg.norm(vectors, axis=1, keepdims=True)]
        self._new = seed * 10_000_000

    async def exact(self, number: int) -> None:
        found = await self.cache.find_exact(scope(number), digest(number % self.target.entries))
        assert found.match is not None

    async def similar(self, number: int) -> None:
        await self.cache.find_similar(EMBEDDER, scope(number), self._vectors[number % 512], 0)

    async def store(self, number: int) -> None:
        self._new += 1
        await self.put(number, self._new)

    async def put(self, number: int, place: int) -> None:
        answer = NewAnswer(f"Question number {place}, of eighty bytes or so", "A" * 500, "m", "t", usage=Usage(9, 99))
        assert await self.cache.store(scope(number), digest(place), self._vectors[place % 512], answer)


def scope(number: int) -> str:
    return f"{EMBEDDER.fingerprint}-{number % TENANTS:024x}"


def digest(number: int) -> str:
    return f"{number:032x}"


async def all_of(calls: int, begin: int, work: Callable[[int], Awaitable[None]]) -> float:
    """Makes `calls`, `CONCURRENCY` in parallel. Returns the seconds they take."""
    numbers = iter(range(begin, begin + calls))

    async def some() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(CONCURRENCY)))
    return time.perf_counter() - began


async def run_client(target: Target, seed: int, what: str, calls: int) -> float:
    address = RedisAddress(target.url, timeout=30.0, connect_timeout=5.0, max_connections=2 * CONCURRENCY)
    async with open_client(address, lambda shard: RedisHealthEvents(), print, target.keys.probe) as gate:
        client = Client(target, gate, seed)
        assert await gate.check()
        for index in client.indexes:
            await index.ensure(EMBEDDER)
        if what == "fill":
            return await all_of(target.entries, 0, lambda number: client.put(number, number))
        works = dict(zip(WORKS, (client.exact, client.similar, client.store), strict=True))
        return await all_of(calls, seed * calls, works[what])


def in_process(target: Target, seed: int, what: str, calls: int) -> float:
    return asyncio.run(run_client(target, seed, what, calls))


def cpu(servers: Sequence[EmbeddedRedis]) -> list[float]:
    """Returns the seconds of CPU that each server has used."""
    used = []
    for server in servers:
        with redis.Redis(port=server.port) as client:
            info = client.info("cpu")
        used.append(info["used_cpu_user"] + info["used_cpu_sys"])
    return used


@dataclass(frozen=True, slots=True)
class Figures:
    """Calls per second, microseconds of server CPU per call, and each server's share of it."""

    rate: float
    cost: float
    shares: list[float]


def measured(pool: Pool, target: Target, servers: Sequence[EmbeddedRedis], what: str, seed: int) -> Figures:
    before = cpu(servers)
    seconds = pool.starmap(in_process, [(target, seed + client, what, CALLS) for client in range(CLIENTS)])
    spent = [after - was for after, was in zip(cpu(servers), before, strict=True)]
    rate = sum(CALLS / each for each in seconds)
    return Figures(rate, sum(spent) / (CALLS * CLIENTS) * 1e6, [one / sum(spent) for one in spent])


def median_round(rounds: Sequence[Figures]) -> Figures:
    """Returns the round with the median calls per second."""
    return sorted(rounds, key=lambda one: one.rate)[len(rounds) // 2]


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    with ExitStack() as stack:
        alone = stack.enter_context(embedded_redis(persistent=False))
        cluster = stack.enter_context(running_cluster())
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(CLIENTS))
        sides = [(Target(alone.url, False, entries), [alone]), (Target(cluster.url, True, entries), cluster.servers)]
        for target, _ in sides:
            pool.apply(in_process, (target, 99, "fill", 0))
        print(
            f"{entries:,} entries of {TENANTS} tenants, {CLIENTS} client processes, {CONCURRENCY} calls at once in each"
        )
        print(f"{'':18} {'one Redis':>22}   {'three, 16 partitions':>22}   ratio   shares of server CPU")
        for what in WORKS:
            rounds: tuple[list[Figures], list[Figures]] = ([], [])
            for number in range(ROUNDS):  # in turn, so that other load on the machine affects both
                for (target, servers), found in zip(sides, rounds, strict=True):
                    found.append(measured(pool, target, servers, what, CLIENTS * number))
            one, three = median_round(rounds[0]), median_round(rounds[1])
            spread = " / ".join(f"{share:.0%}" for share in three.shares)
            figures = f"{one.rate:9,.0f}/s {one.cost:6.0f} us   {three.rate:9,.0f}/s {three.cost:6.0f} us"
            print(f"{what:18} {figures}   {three.rate / one.rate:5.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
