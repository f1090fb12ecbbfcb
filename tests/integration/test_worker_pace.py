"""Workers check for shared work less often, the more workers there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from api.cancellation import cancel_and_wait
from api.knowledge.ingestion_worker import IngestionWorker
from api.query.warm_up import WarmUps
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.index_keeper import IndexKeeper
from api.redis_store.stores.fleet import FULL_PACE_WORKERS, LEASE_MS, SLOWEST, WorkerRegistry
from tests.support.replies import fields
from tests.support.waiting import wait_until_async

KEYS = Keys()
FACTS = {"host": "h", "pid": 7, "requests": 3, "pool_reuse_rate": 0.5}


@pytest.fixture
async def registry(redis: Redis, redis_url: str) -> AsyncIterator[WorkerRegistry]:
    async with short_commands(RedisAddress(redis_url, timeout=5.0, connect_timeout=5.0, max_connections=8)) as client:
        gate = HealthGatedRedis(client, 8)
        assert await gate.check()
        yield WorkerRegistry(gate, KEYS, "w", lambda: FACTS)


async def now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize(
    ("others", "pace"),
    [(0, 1.0), (FULL_PACE_WORKERS - 1, 1.0), (2 * FULL_PACE_WORKERS - 1, 2.0), (100 * FULL_PACE_WORKERS, SLOWEST)],
)
async def test_the_pace_follows_the_workers_that_live(
    redis: Redis, registry: WorkerRegistry, others: int, pace: float
) -> None:
    alive = {f"other{number}": await now_ms(redis) + 60_000 for number in range(others)}
    await redis.zadd(KEYS.workers, {"dead": 1, **alive})
    await registry.heartbeat()
    assert registry.known_live == others + 1
    assert registry.pace == pace


async def test_a_heartbeat_says_all_facts_and_lasts_as_long_as_the_lease(
    redis: Redis, registry: WorkerRegistry
) -> None:
    await redis.zadd(KEYS.workers, {"dead": 1})
    before = await now_ms(redis)
    await registry.heartbeat()
    said = {name: value.decode() for name, value in fields(await redis.hgetall(KEYS.worker("w"))).items()}
    assert said == {"id": "w", **{name: str(value) for name, value in FACTS.items()}}
    assert 0 < await redis.pttl(KEYS.worker("w")) <= LEASE_MS
    assert LEASE_MS < await redis.pttl(KEYS.workers) <= 2 * LEASE_MS
    listed: Any = await redis.zrange(KEYS.workers, 0, -1, withscores=True)
    ((worker, until),) = listed
    assert worker == b"w"
    assert before + LEASE_MS <= until <= await now_ms(redis) + LEASE_MS


class Looked:
    """Stands for all that is looked at; counts."""

    is_building = False
    supported = False

    def __init__(self) -> None:
        self.looks = 0

    async def look(self, *_: Any) -> Any:
        self.looks += 1
        return None

    async def none(self, *_: Any, **__: Any) -> list[str]:
        self.looks += 1
        return []

    def in_use(self) -> list[str]:
        return []

    def forget_unused(self, _: float) -> None:
        """Nothing is known."""

    waiting = unfinished = none
    behind = identity = maintain = look


def upkeep(looked: Looked, pace: Callable[[], float]) -> IngestionWorker:
    own = cast(Any, looked)
    return IngestionWorker(own, own, own, cast(Any, Named(looked)), lambda _: own, pace)


class Named:
    """An embedder."""

    fingerprint = "f"

    def __init__(self, looked: Looked) -> None:
        self._looked = looked

    async def identity(self) -> Named:
        return self


LOOPS: dict[str, Callable[[Looked, Callable[[], float]], Callable[[], Any]]] = {
    "documents": lambda looked, pace: upkeep(looked, pace).keep,
    "deletions": lambda looked, pace: upkeep(looked, pace).keep_deleting,
    "embedding": lambda looked, pace: upkeep(looked, pace).keep_embedding,
    "warm-ups": lambda looked, pace: WarmUps(cast(Any, looked), cast(Any, None), cast(Any, None), 1, pace).keep_going,
    "indexes": lambda looked, pace: (
        IndexKeeper(cast(Any, looked), cast(Any, [looked]), cast(Any, looked), pace=pace).keep
    ),
}


@pytest.mark.parametrize("name", LOOPS)
async def test_each_look_is_at_the_pace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.redis_store.stores.cache.index_keeper.script", lambda *_: None)
    looked = Looked()
    cast(Any, looked).client = None
    looking = asyncio.create_task(LOOPS[name](looked, lambda: 0.001)())

    async def often() -> bool:
        return looked.looks >= 10  # at the full second's pace that takes nine seconds

    try:
        await wait_until_async(often, timeout=5.0)
    finally:
        await cancel_and_wait([looking])
