"""Measures exact hits, semantic hits, misses and stores of the cache at 1,000, 10,000 and 100,000 entries.

    .venv/bin/python -m scripts.bench_cache [SIZE ...]
    .venv/bin/python -m scripts.bench_cache types [SIZE ...]

Uses the cache's Redis adapter on the embedded Redis. The vectors have 384 dimensions and form clusters, as questions
do. Each size uses the index that SEMANTIC_CACHE_MAX_SIZE would choose; 10,000 entries also run with the other one.
`types` compares the values of SEMANTIC_CACHE_VECTOR_TYPE, on two servers in turns. There is no embedder and no HTTP.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from api.embedded.redis_server import embedded_redis
from api.ports.answer_cache import NewAnswer
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import VECTOR_FIELDS, Algorithm, VectorType, algorithm_for
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import EmbedderIdentity, Usage, Vector

SIZES: Final = (1_000, 10_000, 100_000)
DIMENSION: Final = 384
CLUSTERS: Final = 2_000
ANSWER: Final = "A" * 500
CALLS: Final = 1_500
ROUNDS: Final = 5
HOUR: Final = 3_600_000
"""Milliseconds."""
CONCURRENCY: Final = 32
EXACT_NEIGHBOURS: Final = 100
SCOPE: Final = "benchbench-0123456789abcdef01234567"
EMBEDDER: Final = EmbedderIdentity("bench", DIMENSION, "benchbench")

Work = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of sequential calls, and calls per second with `CONCURRENCY` in parallel."""

    p50: float
    p99: float
    rate: float


def questions(count: int, source: np.random.Generator) -> np.ndarray:
    """Returns unit vectors in clusters. Neighbors in a cluster are about as close as questions of one intent."""
    centres = source.standard_normal((CLUSTERS, DIMENSION)).astype(np.float32)
    found = centres[source.integers(0, CLUSTERS, count)] + 0.5 * source.standard_normal((count, DIMENSION))
    unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit.astype(np.float32)


class Bench:
    """One size with one kind of index, on an empty Redis."""

    def __init__(
        self, redis: BatchingRedis, size: int, algorithm: Algorithm, vector_type: VectorType = "float32"
    ) -> None:
        keys, self.gate = Keys(), HealthGatedRedis(redis, CONCURRENCY)
        self.redis = redis
        self.size = size
        self.index = SemanticIndexes(self.gate, keys, algorithm, vector_type)
        counters = CacheCounters(self.gate, keys, "w")
        self.cache = RedisAnswerCache(
            self.gate, keys, self.index, counters, ttl_ms=HOUR, stale_ms=HOUR, max_size=size + 10 * CALLS
        )
        source = np.random.default_rng(7)
        self.vectors = questions(size, source)
        # Paraphrases: close to an entry, at a cosine of about 0.95.
        near = self.vectors[source.integers(0, size, CALLS)] + 0.0165 * source.standard_normal((CALLS, DIMENSION))
        self.asked = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
        self.other = questions(CALLS, source)

    async def fill(self) -> tuple[float, float]:
        """Stores all entries. Returns the bytes of Redis memory per entry, and the index's part of them."""
        await self.gate.check()
        await self.index.of(SCOPE).ensure(EMBEDDER)
        before = await self._memory()
        for begin in range(0, self.size, 256):
            batch = range(begin, min(begin + 256, self.size))
            await asyncio.gather(*(self.store(number, self.vectors[number].tobytes()) for number in batch))
        await self.index.of(SCOPE).maintain()  # as each worker does every second
        used = (await self._memory() - before) / self.size
        redis: Any = self.redis
        info = await redis.execute_command("FT.INFO", (await redis.execute_command("FT._LIST"))[0])
        index = float(info[b"vector_index_sz_mb"]) + float(info[b"total_index_memory_sz_mb"])
        return used, index * 2**20 / self.size

    async def _memory(self) -> int:
        return int((await self.redis.info("memory"))["used_memory"])

    async def seconds(self) -> float:
        """Returns the processor time that Redis has used."""
        info = await self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    async def store(self, number: int, vector: Vector | None) -> None:
        answer = NewAnswer(
            f"Question number {number}, of eighty bytes or so, {'x' * 40}", ANSWER, "m", "t", usage=Usage(9, 99)
        )
        await self.cache.store(SCOPE, f"{number:032x}", vector, answer)

    async def exact(self, number: int) -> None:
        found = await self.cache.find_exact(SCOPE, f"{number % self.size:032x}")
        assert found.match is not None

    async def semantic(self, number: int) -> None:
        lookup = await self.cache.find_exact(SCOPE, "f" * 32)
        found = await self.cache.find_similar(EMBEDDER, SCOPE, self.asked[number % CALLS].tobytes(), lookup.now_ms)
        assert found[0].similarity > 0.9

    async def miss(self, number: int) -> None:
        lookup = await self.cache.find_exact(SCOPE, "f" * 32)
        found = await self.cache.find_similar(EMBEDDER, SCOPE, self.other[number % CALLS].tobytes(), lookup.now_ms)
        assert lookup.match is None
        assert len(found) == 5

    async def store_new(self, number: int) -> None:
        await self.store(self.size + number, self.other[number % CALLS].tobytes())

    async def recall(self) -> float:
        """Returns the share of the true five nearest neighbors that the index finds."""
        right = 0
        for vector in self.asked[:EXACT_NEIGHBOURS]:
            nearest = np.argpartition(self.vectors @ vector, -5)[-5:]
            found = await self.cache.find_similar(EMBEDDER, SCOPE, vector.tobytes(), 0)
            right += len({int(one.answer.entry.rpartition(":")[2], 16) for one in found} & set(nearest.tolist()))
        return right / (5 * EXACT_NEIGHBOURS)


async def measured(work: Work, calls: int) -> Figures:
    seconds = []
    for number in range(calls):
        began = time.perf_counter()
        await work(number)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    numbers = iter(range(calls, 2 * calls))

    async def some() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(some() for _ in range(CONCURRENCY)))
    rate = calls / (time.perf_counter() - began)
    cuts = statistics.quantiles(seconds, n=100)
    return Figures(cuts[49] * 1000, cuts[98] * 1000, rate)


async def run(url: str, size: int, algorithm: Algorithm) -> None:
    async with BatchingRedis.from_url(url, max_connections=2 * CONCURRENCY) as redis:
        await redis.flushall()
        bench = Bench(redis, size, algorithm)
        used, index = await bench.fill()
        calls = 300 if algorithm == "flat" and size > 50_000 else CALLS
        recall = await bench.recall()
        cases: Sequence[tuple[str, Work]] = (
            ("exact hit", bench.exact),
            ("semantic hit", bench.semantic),
            ("miss", bench.miss),
            ("store", bench.store_new),
        )
        print(f"\n{size:,} entries, {algorithm}: {used:,.0f} bytes each, the index {index:,.0f}; recall@5 {recall:.3f}")
        print("                 p50 ms    p99 ms    calls/s at 32")
        for name, work in cases:
            figures = await measured(work, calls)
            print(f"  {name:12} {figures.p50:8.2f}  {figures.p99:8.2f}  {figures.rate:12,.0f}", flush=True)


async def compare(urls: Mapping[VectorType, str], size: int) -> None:
    """Prints the medians of `ROUNDS` with each type."""
    async with AsyncExitStack() as stack:
        print(f"\n{size:,} entries, {algorithm_for(size)}")
        print("           bytes    us of Redis for a semantic hit    p50 ms    recall@5")
        benches: dict[VectorType, Bench] = {}
        rounds: dict[VectorType, list[tuple[float, float]]] = {name: [] for name in urls}
        used: dict[VectorType, float] = {}
        for name, url in urls.items():
            redis = await stack.enter_async_context(BatchingRedis.from_url(url, max_connections=2 * CONCURRENCY))
            await redis.flushall()
            bench = benches[name] = Bench(redis, size, algorithm_for(size), name)
            used[name], _ = await bench.fill()
        for _ in range(ROUNDS):
            for name, bench in benches.items():
                before = await bench.seconds()
                figures = await measured(bench.semantic, CALLS)
                rounds[name].append(((await bench.seconds() - before) / (2 * CALLS) * 1e6, figures.p50))
        for name, bench in benches.items():
            spent, p50 = (statistics.median(values) for values in zip(*rounds[name], strict=True))
            print(f"  {name} {used[name]:7,.0f} {spent:34.0f} {p50:9.2f} {await bench.recall():11.3f}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["types"]:
        with embedded_redis(persistent=False) as one, embedded_redis(persistent=False) as other:
            for size in [int(size) for size in sys.argv[2:]] or (1_000, 20_000):
                asyncio.run(compare(dict(zip(VECTOR_FIELDS, (one.url, other.url), strict=True)), size))
        return
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    with embedded_redis(persistent=False) as redis:
        for size in sizes:
            chosen = algorithm_for(size)
            kinds: Sequence[Algorithm] = ("flat", "hnsw") if size == 10_000 else (chosen,)
            for algorithm in kinds:
                asyncio.run(run(redis.url, size, algorithm))


if __name__ == "__main__":
    main()
