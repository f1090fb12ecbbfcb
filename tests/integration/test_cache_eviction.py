"""The cache's size limit holds across the fleet, evicts the least valuable entries, and respects Redis's
memory limit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from api.embedded.redis_server import embedded_redis
from api.errors import StoreUnavailable
from api.observability.metrics import Metrics
from api.ports.answer_cache import NewAnswer
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import CachedAnswer, CacheMatch, Usage
from tests.stub_ollama import StubOllama
from tests.support.replies import raw, texts
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until_async

SCOPE = f"{'a' * 10}-{'b' * 24}"
HOUR_MS = 3_600_000
KEYS = Keys()
PART = KEYS.partition("")
WORTH, ENDS, USES, TENANT, TENANTS = PART.eviction_keys


class Worker:
    """One worker's cache, without the service around it."""

    def __init__(
        self, redis: BatchingRedis, *, max_size: int = 3, ttl_ms: int = HOUR_MS, tenant_share: float = 0.1
    ) -> None:
        self.gate = HealthGatedRedis(redis, 8)
        self.metrics = Metrics(CollectorRegistry())
        self.counters = CacheCounters(self.gate, KEYS, "w")
        index = SemanticIndexes(self.gate, KEYS)
        self.cache = RedisAnswerCache(
            self.gate,
            KEYS,
            index,
            self.counters,
            ttl_ms=ttl_ms,
            stale_ms=0,
            max_size=max_size,
            tenant_share=tenant_share,
            on_evicted=self.metrics.cache_evicted,
        )

    async def store(self, name: str, *, tokens: int = 0, tenant: str = "t") -> CachedAnswer:
        answer = NewAnswer(question=name, answer="a", model="m", tenant=tenant, usage=Usage(1, tokens))
        stored = await self.cache.store(SCOPE, name, None, answer)
        assert stored is not None
        return stored

    async def use(self, answer: CachedAnswer, times: int = 1) -> None:
        for _ in range(times):
            self.cache.used(CacheMatch(answer, "exact", 1.0, answer.created_ms))
        await self.counters.flush()

    async def kept(self) -> set[str]:
        """The questions of the entries that are there, as the hashes and as the books say."""
        client = self.gate.client
        entries = {key async for key in client.scan_iter(KEYS.cache_entry("*", "*"))}
        assert entries == set(await client.zrange(WORTH, 0, -1)) == set(await client.zrange(ENDS, 0, -1))
        used = {raw(field) for field in await client.hkeys(USES)}
        assert {field for field in used if not field.startswith(b"last_evicted")} <= entries
        await self.check_tenants(entries)
        return {key.decode().rpartition(":")[2] for key in entries}

    async def check_tenants(self, entries: set[bytes]) -> None:
        """What is kept by tenant agrees with the entries."""
        client = self.gate.client
        owners = await client.hgetall(TENANT)
        assert set(owners) == entries
        counts = Counter(texts(owners.values()))
        tenants: Any = await client.zrange(TENANTS, 0, -1, withscores=True)
        assert dict(tenants) == {tenant.encode(): count for tenant, count in counts.items()}
        for tenant in counts:
            assert await client.zcard(PART.entries_of(tenant)) == counts[tenant]
            assert await client.pttl(PART.entries_of(tenant)) > 0


@asynccontextmanager
async def one_worker(redis: BatchingRedis, **limits: Any) -> AsyncIterator[Worker]:
    worker = Worker(redis, **limits)
    assert await worker.gate.check()
    yield worker


# -- by value ----------------------------------------------------------------------------------------------------------


async def test_the_least_recently_used_goes_first(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        first, *_ = [await worker.store(name) for name in "abc"]
        await worker.use(first)
        await worker.store("d")
        assert await worker.kept() == {"a", "c", "d"}


async def test_what_was_used_often_or_took_many_tokens_outlives_what_is_newer(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=4) as worker:
        often, seldom = await worker.store("often"), await worker.store("seldom")
        await worker.store("long", tokens=2_000)
        await worker.store("short", tokens=10)
        await worker.use(often, 7)
        await worker.use(seldom)
        order = [key.rpartition(":")[2] for key in texts(await redis.zrange(WORTH, 0, -1))]
        assert order == ["short", "seldom", "often", "long"]
        await worker.store("new", tokens=100)
        assert await worker.kept() == {"new", "seldom", "often", "long"}


async def test_uses_over_workers_add_up_and_outlast_a_refresh(redis: BatchingRedis) -> None:
    async with one_worker(redis) as one, one_worker(redis) as other:
        answer = await one.store("a")
        await asyncio.gather(one.use(answer, 3), other.use(answer, 4))
        await one.store("a")
        assert await redis.hget(USES, answer.entry) == b"7"
        worth = await redis.zscore(WORTH, answer.entry)
        assert worth is not None
        bonus = worth - milliseconds(await redis.time())
        assert 14 * 60_000 < bonus <= 15 * 60_000, "three doublings of five minutes"


def milliseconds(time: tuple[int, int]) -> int:
    return time[0] * 1000 + time[1] // 1000


async def test_what_nobody_uses_any_more_goes_however_much_it_was_worth(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        await worker.use(await worker.store("old", tokens=100_000), 5_000)
        for number in range(100):
            await worker.store(f"new-{number}", tokens=64)
        assert "old" not in await worker.kept()


async def test_an_answer_just_stored_is_never_the_one_to_go(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        for name in "abc":
            await worker.use(await worker.store(name, tokens=5_000), 50)
        for number in range(5):
            await worker.store(f"new-{number}")
            assert f"new-{number}" in await worker.kept()


# -- the bound ---------------------------------------------------------------------------------------------------------


async def test_two_workers_hold_one_bound_and_count_what_they_evict(
    serve: Service, redis: Redis, stub: StubOllama
) -> None:
    workers = [await serve(cache={"max_size": 10}) for _ in range(2)]
    await asyncio.gather(*(ask(workers[n % 2], f"What of the number {n}?") for n in range(40)))
    assert await redis.zcard(WORTH) == 10
    assert len([key async for key in redis.scan_iter(KEYS.cache_entry("*", "*"))]) == 10
    assert sum([await evictions(worker) for worker in workers]) == 30

    async def fleet_knows() -> bool:
        return bool((await workers[0].get("/api/semantic-cache/metrics")).json()["evictions"] == 30)

    await wait_until_async(fleet_knows)


async def evictions(client: httpx.AsyncClient) -> int:
    """As Prometheus would read them."""
    lines = (await client.get("/metrics")).text.splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("ragherd_cache_evictions_total ")))


async def test_entries_that_have_expired_push_no_living_one_out(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=3) as worker, one_worker(redis, max_size=3, ttl_ms=20) as brief:
        await worker.store("lives")
        for name in "ab":
            await worker.use(await brief.store(name, tokens=9_000), 100)
        await wait_until_async(lambda: nothing_of(redis, "a", "b"))
        for name in "cd":
            await worker.store(name)
        assert await worker.kept() == {"lives", "c", "d"}
        assert (await worker.counters.totals()).get("evictions", 0) == 0


async def nothing_of(redis: Redis, *names: str) -> bool:
    return not await redis.exists(*(KEYS.cache_entry(SCOPE, name) for name in names))


async def test_entries_gone_otherwise_are_not_counted_as_evicted(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        gone = [await worker.store(name, tokens=9_000) for name in "ab"]
        await redis.unlink(*(answer.entry for answer in gone))
        for name in "cde":
            await worker.store(name)
        assert await worker.kept() == {"c", "d", "e"}
        assert (await worker.counters.totals()).get("evictions", 0) == 0


async def test_a_corrupt_entry_is_left_alone_until_it_expires_or_is_evicted(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        corrupt = await worker.store("a")
        await redis.hset(corrupt.entry, "sources", "{")
        assert (await worker.cache.find_exact(SCOPE, "a")).match is None
        await worker.counters.flush()
        assert await worker.kept() == {"a"}, "a worker of a later release may read it"
        for name in "bcd":
            await worker.store(name)
        assert await worker.kept() == {"b", "c", "d"}


async def test_books_that_redis_evicted_are_kept_again_with_each_use(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        answer = await worker.store("a")
        ends = await redis.zscore(ENDS, answer.entry)
        await redis.unlink(*PART.eviction_keys)
        await worker.use(answer)
        assert await worker.kept() == {"a"}
        assert await redis.zscore(ENDS, answer.entry) == pytest.approx(ends, abs=5)
        assert [await redis.pttl(book) > 0 for book in PART.eviction_keys] == [True] * 5


async def test_a_use_of_an_entry_that_is_gone_brings_nothing_back(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        gone = await worker.store("a")
        await redis.unlink(gone.entry)
        await worker.use(gone)
        assert await worker.kept() == set()
        await redis.flushall()
        await worker.use(gone)
        assert await redis.exists(*PART.eviction_keys) == 0


async def test_a_book_that_comes_back_with_an_entry_that_goes_has_a_lifetime(redis: BatchingRedis) -> None:
    async with one_worker(redis) as worker:
        gone = await worker.store("a")
        await worker.store("b")
        await redis.unlink(gone.entry, TENANTS)
        await worker.use(gone)
        assert await worker.kept() == {"b"}
        assert await redis.pttl(TENANTS) > 0


async def test_nothing_is_kept_of_a_tenant_without_entries(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=2) as worker:
        answers = [await worker.store(name, tenant="gone") for name in "abc"]
        assert await redis.hexists(USES, "last_evicted:gone")
        await worker.store("d", tenant="t")
        await redis.unlink(*(answer.entry for answer in answers))
        for answer in answers:
            await worker.use(answer)
        assert await worker.kept() == {"d"}
        assert not await redis.hexists(USES, "last_evicted:gone")


# -- by tenant ---------------------------------------------------------------------------------------------------------


async def test_a_tenant_that_floods_the_cache_evicts_only_its_own_answers(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=100) as worker:
        mine = {(await worker.store(f"mine-{number}", tenant="quiet")).question for number in range(40)}
        for number in range(300):
            await worker.use(await worker.store(f"flood-{number}", tokens=5_000, tenant="loud"), 5)
        kept = await worker.kept()
        assert mine <= kept
        assert len(kept) == 100
        assert "flood-299" in kept, "the newest of the tenant that is over its share"


async def test_several_tenants_that_flood_leave_a_small_one_alone(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=100) as worker:
        mine = {(await worker.store(f"mine-{number}", tenant="quiet")).question for number in range(10)}
        for number in range(300):
            await worker.store(f"flood-{number}", tokens=5_000, tenant=f"loud-{number % 3}")
        assert mine <= await worker.kept()


async def test_below_the_share_the_least_valuable_goes_whoever_has_it(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=4, tenant_share=0.5) as worker:
        await worker.store("old", tenant="a")
        for name, tenant in (("b", "b"), ("c", "c"), ("d", "d"), ("e", "e")):
            await worker.store(name, tokens=500, tenant=tenant)
        assert await worker.kept() == {"b", "c", "d", "e"}


async def test_a_share_of_all_tells_no_tenants_apart(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=10, tenant_share=1.0) as worker:
        for number in range(4):
            await worker.store(f"mine-{number}", tenant="quiet")
        for number in range(20):
            await worker.store(f"flood-{number}", tokens=5_000, tenant="loud")
        assert not any(name.startswith("mine") for name in await worker.kept())


async def test_tenants_that_redis_evicted_or_an_older_release_left_out_are_counted_again(redis: BatchingRedis) -> None:
    async with one_worker(redis, max_size=5, tenant_share=0.2) as worker:
        quiet = await worker.store("mine", tenant="quiet")
        for number in range(3):
            await worker.store(f"flood-{number}", tenant="loud")
        await redis.unlink(TENANT, TENANTS, PART.entries_of("quiet"), PART.entries_of("loud"))
        await worker.use(quiet)
        for number in range(3, 9):
            await worker.store(f"flood-{number}", tokens=5_000, tenant="loud")
        kept = {key.decode().rpartition(":")[2] async for key in redis.scan_iter(KEYS.cache_entry("*", "*"))}
        assert len(kept) == 5
        assert "mine" in kept


# -- where Redis's memory is bounded -----------------------------------------------------------------------------------


@pytest.fixture
def small_redis() -> Iterator[str]:
    """The URL of a Redis of its own, whose memory a test may bound."""
    with embedded_redis(persistent=False) as server:
        yield server.url


async def fill(client: Redis, megabytes: int) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for number in range(megabytes):
            pipe.set(f"rag:cache:{SCOPE}:filler-{number}", b"x" * 2**20, px=HOUR_MS)
        await pipe.execute(raise_on_error=False)


async def test_a_volatile_policy_takes_entries_and_never_the_breaker(small_redis: str, stub: StubOllama) -> None:
    async with (
        Redis.from_url(small_redis) as redis,
        running_service(make_settings(small_redis, stub.base_url)) as client,
    ):
        await client.post("/api/circuit-breaker/force-open")
        await client.post("/api/circuit-breaker/reset")
        breaker = await redis.hgetall("rag:cb:{ollama}")
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory-policy", "volatile-lru")
        await redis.config_set("maxmemory", used + 8 * 2**20)
        await fill(redis, 32)
        assert (await redis.info("stats"))["evicted_keys"] > 10
        assert (await ask(client, "Who is there?"))["cache"]["status"] == "miss"
        assert (await ask(client, "Who is there?"))["cache"]["status"] == "hit"
        assert breaker.items() <= (await redis.hgetall("rag:cb:{ollama}")).items()
        assert await redis.exists("rag:cb:{ollama}:log")


async def test_a_full_redis_that_evicts_nothing_costs_the_cache_and_no_answer(
    small_redis: str, stub: StubOllama
) -> None:
    async with (
        Redis.from_url(small_redis) as redis,
        running_service(make_settings(small_redis, stub.base_url)) as client,
    ):
        assert (await ask(client, "What was known before?"))["cache"]["status"] == "miss"
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", 2**20)
        for number in range(5):
            assert (await ask(client, f"What is new of {number}?"))["cache"]["status"] in ("miss", "bypass")
        assert (await ask(client, "What was known before?"))["cache"]["status"] == "hit"
        lost = [
            line for line in (await client.get("/metrics")).text.splitlines() if line.startswith("ragherd_redis_up ")
        ]
        assert lost == ["ragherd_redis_up 1.0"]
        await redis.config_set("maxmemory", 0)
        assert (await ask(client, "What is new of 9?"))["cache"]["status"] == "miss"
        assert (await ask(client, "What is new of 9?"))["cache"]["status"] == "hit"


async def test_an_answer_that_finds_memory_full_leaves_the_older_one_whole(small_redis: str) -> None:
    async with BatchingRedis.from_url(small_redis) as redis, one_worker(redis) as worker:
        before = await worker.store("a", tokens=5)
        await redis.config_set("maxmemory", 2**20)
        with pytest.raises(StoreUnavailable):
            await worker.store("a", tokens=6)
        with pytest.raises(StoreUnavailable):
            await worker.store("b")
        found = (await worker.cache.find_exact(SCOPE, "a")).match
        assert found is not None
        assert found.answer == before
        assert await worker.kept() == {"a"}
        assert worker.gate.is_up
