"""The vector indexes are recreated when they are lost, and dropped when they are no longer used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import Algorithm, VectorType
from api.redis_store.stores.cache.index_keeper import IndexKeeper, is_left_over
from api.redis_store.stores.cache.semantic_index import SemanticIndex, SemanticIndexes
from api.redis_store.stores.fleet import RedisLeaderLease
from api.values import EmbedderIdentity
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
PART = KEYS.partition("")
USES = PART.index_uses
MODEL, OLDER = (EmbedderIdentity(f"model-{letter}", 4, letter * 10) for letter in "ab")
FLAT, HNSW, OLD = (PART.index(of.fingerprint, kind) for of, kind in ((MODEL, "flat"), (MODEL, "hnsw"), (OLDER, "flat")))
SHORT = PART.index(MODEL.fingerprint, "flat", "float16")
QUESTION, PARAPHRASE = "How do I reset my password?", "My password, how do I reset?"


@dataclass
class Worker:
    index: SemanticIndex
    keeper: IndexKeeper


@asynccontextmanager
async def worker(
    url: str, algorithm: Algorithm = "flat", name: str = "w", vector_type: VectorType = "float32"
) -> AsyncIterator[Worker]:
    """The index and its keeper as one worker has them, not running; indexes are idle after a minute."""
    async with short_commands(RedisAddress(url, timeout=5.0, connect_timeout=1.0, max_connections=8)) as client:
        gate = HealthGatedRedis(client, 8)
        indexes = SemanticIndexes(gate, KEYS, algorithm, vector_type)
        assert await gate.check()
        keeper = IndexKeeper(gate, indexes, RedisLeaderLease(gate, KEYS.janitor, name), idle_seconds=60)
        yield Worker(indexes.of(""), keeper)


async def indexes(redis: Redis) -> set[str]:
    return {name.decode() for name in await redis.execute_command("FT._LIST")}  # type: ignore[no-untyped-call]


async def minutes_pass(redis: Redis, *names: str) -> None:
    """What the workers noted of these indexes is two minutes older."""
    for name in names:
        await redis.zincrby(USES, -120_000, name)


async def store(redis: Redis, model: EmbedderIdentity) -> None:
    """An entry of that embedder, in its index before this returns."""
    scope = f"{model.fingerprint}-{'0' * 24}"
    await redis.hset(KEYS.cache_entry(scope, "0" * 32), mapping={"scope": scope, "vector": b"\0" * 16, "expires_ms": 2})


# -- there whatever becomes of Redis -----------------------------------------------------------------------------------


async def is_found_by_meaning(client: httpx.AsyncClient) -> bool:
    """By what explains it, which stores nothing: the paraphrase itself would soon be an exact hit."""
    await ask(client, QUESTION)
    explained = await client.post("/api/semantic-cache/explain", json={"question": PARAPHRASE})
    return bool(explained.json()["decision"] == "semantic_hit")


async def test_after_flushall_the_index_is_back_without_traffic(serve: Service, redis: Redis) -> None:
    client = await serve()
    await ask(client, QUESTION)
    before = await indexes(redis)
    assert len(before) == 1
    await redis.flushall()
    assert await indexes(redis) == set()

    async def is_back() -> bool:
        return await indexes(redis) == before

    await wait_until_async(is_back, timeout=2.0)
    await wait_until_async(lambda: is_found_by_meaning(client), timeout=2.0)


async def test_after_a_restart_without_data_the_index_is_back_without_traffic(
    serve: Service, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    client = await serve()
    await ask(client, QUESTION)
    redis_server.kill()
    redis_server.start()
    async with Redis.from_url(redis_url) as fresh:
        await wait_until_async(lambda: indexes(fresh))

    await wait_until_async(lambda: is_found_by_meaning(client))


async def test_six_workers_that_start_at_once_make_one_index(redis: Redis, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        six = [await stack.enter_async_context(worker(redis_url)) for _ in range(6)]
        await asyncio.gather(*(each.index.ensure(MODEL) for each in six))
        assert await indexes(redis) == {FLAT}
        await redis.flushall()
        await asyncio.gather(*(each.index.maintain() for each in six))
        assert await indexes(redis) == {FLAT}


# -- dropped when nobody needs it --------------------------------------------------------------------------------------


async def test_two_kinds_in_a_rollout_stand_side_by_side(redis: Redis, redis_url: str) -> None:
    async with worker(redis_url, "flat") as one, worker(redis_url, "hnsw", "other") as other:
        for each in (one, other):
            await each.index.ensure(MODEL)
        for each in (one, other) * 3:
            await minutes_pass(redis, FLAT, HNSW)
            await one.keeper.renew()
            await other.keeper.renew()
            assert await each.keeper.clean() == []
            await each.index.maintain()
        assert await indexes(redis) == {FLAT, HNSW}


@pytest.mark.parametrize(("algorithm", "vector_type", "new"), [("hnsw", "float32", HNSW), ("flat", "float16", SHORT)])
async def test_the_kind_that_nobody_uses_any_more_goes_and_its_entries_stay(
    redis: Redis, redis_url: str, algorithm: Algorithm, vector_type: VectorType, new: str
) -> None:
    async with worker(redis_url, "flat") as before:
        await before.index.ensure(MODEL)
        await before.keeper.renew()
    await store(redis, MODEL)
    async with worker(redis_url, algorithm, vector_type=vector_type) as after:
        await after.index.ensure(MODEL)
        await after.keeper.renew()
        assert await after.keeper.clean() == []
        await minutes_pass(redis, FLAT)
        assert await after.keeper.clean() == [FLAT]
    assert await indexes(redis) == {new}
    assert await redis.keys("rag:cache:*")
    assert await redis.zrange(USES, 0, -1) == [FLAT.encode(), new.encode()]


async def test_an_old_embedders_index_goes_once_it_is_empty(redis: Redis, redis_url: str) -> None:
    async with worker(redis_url) as before:
        await before.index.ensure(OLDER)
    await store(redis, OLDER)
    async with worker(redis_url) as after:
        await after.index.ensure(MODEL)
        await after.keeper.renew()
        assert await after.keeper.clean() == [], "nothing was known of it: it counts as used now"
        await minutes_pass(redis, OLD)
        assert await after.keeper.clean() == [], "a rollback would find its answers again"
        await redis.unlink(*await redis.keys("rag:cache:*"))
        assert await after.keeper.clean() == [OLD]
        assert await indexes(redis) == {FLAT}


async def test_a_worker_lets_go_of_an_embedder_that_nobody_asks_for(redis: Redis, redis_url: str) -> None:
    async with worker(redis_url) as each:
        await each.index.ensure(OLDER)
        await each.index.ensure(MODEL)
        assert set(each.index.in_use()) == {OLD, FLAT}
        each.index.forget_unused(0)
        assert each.index.in_use() == [FLAT]
        await redis.flushall()
        await each.index.maintain()
        assert await indexes(redis) == {FLAT}


async def test_one_worker_at_a_time_is_the_janitor_and_other_services_indexes_are_not_its(
    redis: Redis, redis_url: str
) -> None:
    await redis.execute_command("FT.CREATE", "another", "PREFIX", 1, "x:", "SCHEMA", "t", "TAG")  # type: ignore[no-untyped-call]
    async with worker(redis_url, name="one") as one, worker(redis_url, name="other") as other:
        await one.index.ensure(OLDER)
        await one.keeper.clean()
        await minutes_pass(redis, OLD)
        assert await other.keeper.clean() == []
        assert await one.keeper.clean() == [OLD]
    assert await indexes(redis) == {"another"}


@pytest.mark.parametrize(
    ("name", "entries", "used", "left_over"),
    [
        (FLAT, 0, set(), True),
        (FLAT, 1, set(), False),
        (FLAT, 1, {HNSW}, True),
        (FLAT, 1, {OLD}, False),
        (FLAT.removesuffix("-flat"), 1, {FLAT}, True),
    ],
)
def test_which_idle_index_is_left_over(name: str, entries: int, used: set[str], left_over: bool) -> None:
    assert is_left_over(PART, name, entries, used) is left_over
