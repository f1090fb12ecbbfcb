"""The vector index on a real Redis: its results, and its recovery after any failure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import embedded_redis
from api.embedded.service_plan import free_port
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import FLAT_UP_TO, NEIGHBOURS, Algorithm, algorithm_for
from api.redis_store.stores.cache.semantic_index import SemanticIndex
from api.values import EmbedderIdentity
from tests.support.redis_monitor import searches_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys().partition("")
DIMENSION = 128
MODEL = EmbedderIdentity("model", DIMENSION, "a" * 10)
SCOPES = [f"{MODEL.fingerprint}-{letter * 24}" for letter in "12"]
Vectors = npt.NDArray[np.float32]


@asynccontextmanager
async def worker(url: str, algorithm: Algorithm = "flat") -> AsyncIterator[SemanticIndex]:
    """The index of one worker."""
    async with short_commands(RedisAddress(url, timeout=5.0, connect_timeout=1.0, max_connections=8)) as client:
        gate = HealthGatedRedis(client, 8)
        index = SemanticIndex(gate, KEYS, algorithm)
        assert await gate.check()
        yield index


def clustered(count: int, seed: int = 0) -> Vectors:
    """Returns unit vectors in clusters, as questions about the same subjects have them."""
    chance = np.random.default_rng(seed)
    subjects = chance.standard_normal((60, DIMENSION))
    vectors = subjects[chance.integers(0, 60, count)] + 0.5 * chance.standard_normal((count, DIMENSION))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def entry(number: int) -> str:
    return KEYS.entry(SCOPES[number % 2], f"{number:032x}")


async def fill(redis: Redis, vectors: Vectors) -> None:
    """Stores entries in two scopes alternately."""
    async with redis.pipeline(transaction=False) as pipe:
        for number, vector in enumerate(vectors):
            fields = {"scope": SCOPES[number % 2], "vector": vector.tobytes(), "expires_ms": 2, "question": "q"}
            pipe.hset(entry(number), mapping=fields)  # type: ignore[arg-type]
            pipe.expire(entry(number), 3600)
        await pipe.execute()


async def indexes(redis: Redis) -> set[str]:
    return {name.decode() for name in await redis.execute_command("FT._LIST")}  # type: ignore[no-untyped-call]


def names(*algorithms: Algorithm, model: EmbedderIdentity = MODEL) -> set[str]:
    return {KEYS.index(model.fingerprint, algorithm) for algorithm in algorithms}


async def found(index: SemanticIndex, vector: npt.NDArray[np.float32], scope: str = SCOPES[0]) -> list[str]:
    return [near.key for near in await index.nearest(MODEL, scope, vector.tobytes(), 1)]


async def finds(index: SemanticIndex, vector: npt.NDArray[np.float32]) -> bool:
    await index.maintain()
    return bool(await found(index, vector))


def truly_nearest(vectors: Vectors, asked: Vectors, part: int) -> list[set[str]]:
    mine = np.arange(part, len(vectors), 2)
    order = np.argsort(-(asked @ vectors[mine].T), axis=1)[:, :NEIGHBOURS]
    return [{entry(int(mine[place])) for place in row} for row in order]


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
async def test_of_the_five_nearest_in_a_scope_nearly_all_are_found(
    redis: Redis, redis_url: str, algorithm: Algorithm
) -> None:
    vectors = clustered(3_000)
    await fill(redis, vectors)
    async with worker(redis_url, algorithm) as index:
        await wait_until_async(lambda: finds(index, vectors[0]))
        hits = await recalled(index, vectors, clustered(3_100)[-100:])
    assert hits >= (0.99 if algorithm == "hnsw" else 1.0) * 2 * 100 * NEIGHBOURS


async def recalled(index: SemanticIndex, vectors: Vectors, asked: Vectors) -> int:
    hits = 0
    for part, scope in enumerate(SCOPES):
        truth: Sequence[set[str]] = truly_nearest(vectors, asked, part)
        for vector, expected in zip(asked, truth, strict=True):
            hits += len(expected & set(await found(index, vector, scope)))
    return hits


def test_the_kind_is_chosen_by_the_bound_on_entries() -> None:
    assert [algorithm_for(size) for size in (1, FLAT_UP_TO, FLAT_UP_TO + 1)] == ["flat", "flat", "hnsw"]


async def test_a_graph_is_walked_for_a_scope_that_is_much_of_it(redis: Redis, redis_url: str) -> None:
    """For a small scope, comparing all of its entries is faster and exact."""
    vectors = clustered(1_000)
    await fill(redis, vectors)
    few = f"{MODEL.fingerprint}-{'3' * 24}"
    await redis.hset(entry(1), "scope", few)
    async with worker(redis_url, "hnsw") as index:
        await wait_until_async(lambda: finds(index, vectors[0]))
        scopes = (few, SCOPES[0], few, SCOPES[0])
        searches = [await searches_of(redis, partial(found, index, vectors[1], of)) for of in scopes]
    counted = [[search for search in some if "KNN" not in search] for some in searches]
    assert [len(some) for some in counted] == [1, 0, 0, 0], "`finds` has counted the large one before"
    walked = [any("HYBRID_POLICY BATCHES" in search for search in some) for some in searches]
    assert walked == [False, True, False, True]


# -- when SEMANTIC_CACHE_MAX_SIZE is changed ---------------------------------------------------------------------------


async def test_the_old_index_serves_until_the_new_one_is_complete(redis: Redis, redis_url: str) -> None:
    vectors = clustered(3_000)
    await fill(redis, vectors)
    async with worker(redis_url, "flat") as before, worker(redis_url, "hnsw") as after:
        await wait_until_async(lambda: finds(before, vectors[0]))
        await after.ensure(MODEL)
        assert after.is_building
        while after.is_building:
            assert await found(after, vectors[0]), "served by the old one"
            await after.maintain()
        assert await found(after, vectors[0])
        await redis.execute_command("FT.DROPINDEX", *names("flat"))
        assert await found(after, vectors[0]), "served by the new one"


async def test_while_the_only_index_is_built_nothing_is_asked_of_it(redis: Redis, redis_url: str) -> None:
    vectors = clustered(3_000)
    await fill(redis, vectors)
    async with worker(redis_url, "hnsw") as index:
        await index.ensure(MODEL)
        assert index.is_building
        assert await found(index, vectors[0]) == []
        await wait_until_async(lambda: finds(index, vectors[0]))
        assert not index.is_building


async def test_after_a_restart_with_its_data_a_graph_serves_again(tmp_path: Path) -> None:
    vectors = clustered(1_000)
    with embedded_redis(tmp_path, persistent=False, port=free_port(None)) as server:
        async with Redis.from_url(server.url) as redis, worker(server.url, "hnsw") as index:
            await fill(redis, vectors)
            await wait_until_async(lambda: finds(index, vectors[0]))
            before = await found(index, vectors[0])
            await redis.save()
        server.kill()
        server.start()
        async with worker(server.url, "hnsw") as index:
            await wait_until_async(lambda: finds(index, vectors[0]))
            assert await found(index, vectors[0]) == before


async def test_a_bound_above_a_few_thousand_makes_a_graph_that_answers(serve: Service, redis: Redis) -> None:
    client = await serve(cache={"max_size": FLAT_UP_TO + 1})
    await ask(client, "How do I reset my password?")
    assert (await ask(client, "My password, how do I reset?"))["cache"]["kind"] == "semantic"
    assert [name.endswith("-hnsw-2") for name in await indexes(redis)] == [True]
    assert (await client.get("/api/semantic-cache/metrics")).json()["cache_size"] == 1
