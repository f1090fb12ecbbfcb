"""The history on a real Redis: what is counted, who writes it, and what an outage leaves."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api.breaker.state import State
from api.errors import StoreUnavailable
from api.observability.history_figures import BUCKETS, MinuteCounts, row_of
from api.observability.history_keeper import LEASE_SECONDS, HistoryKeeper, HistoryReader, Observed
from api.ports.answer_quality import FalseHitRate, QualityState
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.fleet import CacheCounters, RedisLeaderLease
from api.redis_store.stores.history_store import HOUR_LIFETIME_MS, KEPT_HOURS, MINUTE_MS, RedisHistory, hour_name
from api.values import CacheStatus
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
PATH = "/api/history"
STATE = QualityState(rate=FalseHitRate(0.01, 0.005, 0.02, 400))


async def points(client: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    response = await client.get(PATH, params=asked)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["points"]
    return found


async def totals(client: httpx.AsyncClient, group: str) -> Counter[str]:
    """Returns the sums over all minutes."""
    sums: Counter[str] = Counter()
    for one in await points(client):
        sums.update(one.get(group, {}))
    return +sums


# -- the service ------------------------------------------------------------------------------------------------------


async def test_the_fleet_counts_what_users_got_and_nothing_else(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    await ask(one, "How do I reset my password?")
    await ask(other, "How do I reset my password?")
    await ask(other, "My password, how do I reset?")
    warming = await one.post("/api/semantic-cache/warm", json={"questions": ["Where is the office?"]})

    async def warmed() -> bool:
        return bool((await one.get(warming.headers["Location"])).json()["status"] == "done")

    await wait_until_async(warmed)
    await one.post("/api/semantic-cache/explain", json={"question": "How do I reset my password?"})
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await one.post("/query", json={"question": "What fails?"})).status_code == 502
    expected = {"hit": 2, "miss": 1, "error": 1}

    async def counted() -> bool:
        return await totals(other, "queries") == expected

    await wait_until_async(counted)
    assert await totals(one, "queries") == expected
    assert await totals(one, "hits") == {"exact": 1, "semantic": 1}
    assert await totals(one, "errors") == {"upstream-failed": 1}
    usage = (await ask(one, "How do I reset my password?"))["usage"]
    assert usage["prompt_tokens"] == 0  # a hit costs no tokens
    tokens = await totals(one, "tokens")
    assert (tokens["prompt"] > 0, tokens["completion"] > 0) == (True, True)
    shown = next(one for one in reversed(await points(one)) if one.get("latency_ms"))
    assert {"hit", "miss"} >= set(shown["latency_ms"])
    assert all(0 < each["p50"] <= each["p95"] <= each["p99"] for each in shown["latency_ms"].values())


async def test_a_breaker_that_opens_is_seen_in_its_seconds(serve: Service) -> None:
    client = await serve()
    assert (await client.post("/api/circuit-breaker/force-open")).status_code == 200
    await ask_in_vain(client)

    async def open_for_a_while() -> bool:
        return any(one.get("breaker_seconds", {}).get("OPEN", 0) > 0.2 for one in await points(client))

    await wait_until_async(open_for_a_while)
    assert (await client.post("/api/circuit-breaker/reset")).status_code == 200
    last = (await points(client))[-1]
    assert set(last["breaker_seconds"]) == set(State)
    assert last["breakers"]["ollama"] == last["breaker_seconds"]


async def ask_in_vain(client: httpx.AsyncClient) -> None:
    response = await client.post("/query", json={"question": "Is anybody there?"})
    assert response.status_code == 503


async def test_the_current_minute_shows_workers_pool_and_bulkhead(serve: Service) -> None:
    client, _ = await serve(), await serve()

    async def observed() -> bool:
        found = await points(client)
        return any(one.get("workers") for one in found) and sum(one.get("started", 0) for one in found) == 2

    await wait_until_async(observed)
    last = next(one for one in reversed(await points(client)) if one.get("workers"))
    assert last["pool"].keys() == last["bulkheads"]["ollama"].keys() == {"in_use", "waiting", "limit", "utilization"}
    assert last["false_hits"] == {"estimate": None, "low": None, "high": None, "samples": 0}
    assert sum(one.get("restarts", 0) for one in await points(client)) == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"step": "90"}, "step"),
        ({"step": "0"}, "step"),
        ({"step": "86460"}, "step"),
        ({"step": "nan"}, "step"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01T00:00:00Z"}, "to"),
        ({"from": "2020-01-01T00:00:00Z", "step": "60"}, "step"),
        ({"from": "2999-01-01T00:00:00Z"}, "from"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
    ],
)
async def test_a_wrong_range_is_refused_by_name(serve: Service, asked: dict[str, str], field: str) -> None:
    response = await (await serve()).get(PATH, params=asked)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert field in response.text


async def test_times_may_be_rfc_3339_seconds_or_milliseconds(serve: Service, redis: Redis) -> None:
    client = await serve()
    seconds = (await redis.time())[0] // 60 * 60 - 600
    spelled = [str(seconds), str(seconds * 1000), f"{seconds}.0"]
    first = {(await points(client, **{"from": start, "to": str(seconds + 300)}))[0]["at"] for start in spelled}
    assert len(first) == 1
    at = first.pop()
    for start in (at, at.replace("Z", "+00:00"), at.replace("Z", "")):
        found = await points(client, **{"from": start, "to": str(seconds + 300)})
        assert [one["at"] for one in found][:1] == [at]
        assert [one.get("gap") for one in found] == [True] * 5


async def test_without_a_history_there_is_neither_a_page_nor_a_key(serve: Service, redis: Redis) -> None:
    client = await serve(server={"history_enabled": False})
    await ask(client, "How do I reset my password?")
    await wait_until_async(lambda: redis.exists("rag:stats:cache"))
    refused = await client.get(PATH)
    assert (refused.status_code, "HISTORY_ENABLED" in refused.json()["detail"]) == (404, True)
    assert await redis.keys("rag:history:*") == []


# -- the store --------------------------------------------------------------------------------------------------------


class Later(RedisHistory):
    """A store whose clock is ahead."""

    ahead_ms = 0

    async def now_ms(self) -> int:
        return await super().now_ms() + self.ahead_ms


@pytest.fixture
async def gate(redis: BatchingRedis) -> HealthGatedRedis:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    return gate


async def a_minute_that_lasts(gate: HealthGatedRedis) -> None:
    """Returns when the current minute lasts for at least ten more seconds."""
    store = RedisHistory(gate, KEYS, "w")

    async def lasts() -> bool:
        return await store.now_ms() % MINUTE_MS < MINUTE_MS - 10_000

    await wait_until_async(lasts, timeout=20)


async def no_workers() -> list[dict[str, str]]:
    return [{"id": "w", "pool_active": "2", "pool_waiting": "1"}]


OBSERVED = Observed(no_workers, 15, {}, {}, lambda: STATE)


def keeper(
    gate: HealthGatedRedis, worker: str, written: Counter[str] | None = None, observed: Observed = OBSERVED
) -> tuple[HistoryKeeper, Later]:
    store = Later(gate, KEYS, worker)
    lease = RedisLeaderLease(gate, KEYS.history_lease, worker)
    count = written if written is not None else Counter()
    return HistoryKeeper(store, lease, observed, written=lambda: count.update(["minute"])), store


async def test_a_minute_that_is_over_is_one_json_value_in_the_hash_of_its_hour(
    gate: HealthGatedRedis, redis: Redis
) -> None:
    await a_minute_that_lasts(gate)
    counts, written = MinuteCounts(), Counter[str]()
    counters = CacheCounters(gate, KEYS, "w", counts)
    keeping, store = keeper(gate, "w", written)
    await counters.turn()
    counts.open["hit", "exact", 20] += 3
    await counters.flush()
    minute = await store.now_ms() // MINUTE_MS
    assert await keeping.round()
    store.ahead_ms = MINUTE_MS + 3_000
    for _ in range(3):
        assert await keeping.round()
    key = f"rag:history:{hour_name(minute)}"
    row = json.loads(await redis.hget(key, f"{minute % 60:02d}") or "")
    assert (row["queries"], row["hits"], row["samples"]) == ({"hit": 3}, {"exact": 3}, 1)
    assert (row["pool"], row["workers"]) == ({"in_use": 2, "waiting": 1, "limit": 15}, 1)
    assert row["false_hits"] == {"estimate": 0.01, "low": 0.005, "high": 0.02, "samples": 400}
    assert 0 < await redis.pttl(key) <= HOUR_LIFETIME_MS
    assert written == {"minute": 1}


async def test_late_counts_are_in_the_minute_when_it_is_written_again(gate: HealthGatedRedis) -> None:
    counts = MinuteCounts()
    counters = CacheCounters(gate, KEYS, "w", counts)
    keeping, store = keeper(gate, "w")
    minute = await store.now_ms() // MINUTE_MS
    await keeping.round()
    store.ahead_ms = MINUTE_MS + 3_000
    await keeping.round()
    await counters.turn()
    counts.turn(minute, up=True)
    counts.open["hit", "exact", 20] += 3
    await counters.flush()
    store.ahead_ms = 3 * MINUTE_MS
    await keeping.round()
    assert orjson.loads((await store.rows(minute, minute))[minute])["queries"] == {"hit": 3}


async def test_counts_of_a_worker_that_lost_redis_for_minutes_are_found_too(gate: HealthGatedRedis) -> None:
    counts = MinuteCounts()
    counters = CacheCounters(gate, KEYS, "w", counts)
    keeping, store = keeper(gate, "w")
    minute = await store.now_ms() // MINUTE_MS
    for store.ahead_ms in (0, MINUTE_MS + 3_000, 2 * MINUTE_MS + 5_000):
        assert await keeping.round()
    await counters.turn()
    counts.turn(minute, up=True)
    counts.open["hit", "exact", 20] += 3
    await counters.flush()
    store.ahead_ms = 6 * MINUTE_MS
    assert await keeping.round()
    assert orjson.loads((await store.rows(minute, minute))[minute])["queries"] == {"hit": 3}


class BreakerLog:
    """A breaker that was closed all the time. Its Redis may be down."""

    def __init__(self) -> None:
        self.store = self
        self.is_up = True

    async def read(self) -> Any:
        if not self.is_up:
            raise StoreUnavailable("down")
        return SimpleNamespace(breaker=SimpleNamespace(state=State.CLOSED))

    async def history(self, *_: object) -> list[Any]:
        return []


async def test_the_time_of_a_breaker_is_kept_while_its_redis_is_down(gate: HealthGatedRedis) -> None:
    breaker = BreakerLog()
    keeping, store = keeper(gate, "w", observed=replace(OBSERVED, breakers={"ollama": breaker}))  # type: ignore[dict-item]
    minute = await store.now_ms() // MINUTE_MS

    async def found() -> Any:
        return orjson.loads((await store.rows(minute, minute))[minute])["breaker_ms"]

    for store.ahead_ms in (0, MINUTE_MS + 3_000):
        assert await keeping.round()
    assert await found() == {"ollama": {"CLOSED": MINUTE_MS}}
    breaker.is_up, store.ahead_ms = False, 2 * MINUTE_MS + 5_000
    assert await keeping.round()
    assert await found() == {"ollama": {"CLOSED": MINUTE_MS}}


async def test_one_worker_writes_and_another_follows_when_its_lease_ends(gate: HealthGatedRedis, redis: Redis) -> None:
    (one, store), (other, _) = keeper(gate, "one"), keeper(gate, "other")
    assert (await one.round(), await other.round(), await one.round()) == (True, False, True)
    assert 0 < await redis.pttl("rag:history:keeper") <= LEASE_SECONDS * 1000
    await redis.delete("rag:history:keeper")
    assert await other.round()
    minute = await store.now_ms() // MINUTE_MS
    assert not await store.observe(
        minute, {"samples": 1}, {}
    )  # paused meanwhile, it thinks that it still has the lease
    assert not await store.write({minute: b"{}"})
    await other.leave()
    assert await one.round()


async def test_counts_whose_reply_was_lost_are_added_once(gate: HealthGatedRedis, redis: Redis) -> None:
    counts = MinuteCounts()
    counters = CacheCounters(gate, KEYS, "w", counts)
    await counters.turn()
    counts.open["queries:error"] += 3
    answer = gate.run

    async def lost(operation: str, command: Any) -> Any:
        await answer(operation, command)
        raise StoreUnavailable("Timeout reading")

    gate.run = lost  # type: ignore[method-assign]
    await counters.flush()
    counts.open["queries:error"] += 2
    await counters.flush()
    gate.run = answer  # type: ignore[method-assign]
    await counters.flush()
    sums = 0
    for key in await redis.keys("rag:history:live:*"):
        sums += int(await redis.hget(key, "queries:error") or 0)
    assert sums == 5


async def test_an_outage_leaves_a_gap_between_complete_minutes(gate: HealthGatedRedis) -> None:
    counts, now = MinuteCounts(), await RedisHistory(gate, KEYS, "w").now_ms()
    counters = CacheCounters(gate, KEYS, "w", counts)
    await counters.turn()
    first = now // MINUTE_MS - 3

    for minute, up in ((first, True), (first, False), (first + 1, False), (first + 2, False), (first + 2, True)):
        gate.is_up = up
        counts.turn(minute, up=up)
        counts.open["hit", "exact", 20] += 1
        if not up:
            await counters.flush()  # sends nothing
    await counters.flush()
    reader = HistoryReader(RedisHistory(gate, KEYS, "w"), OBSERVED, "ollama")
    found = orjson.loads(await reader.read(first * MINUTE_MS, (first + 3) * MINUTE_MS, 60))["points"]
    assert [one.get("gap") or one["queries"]["hit"] for one in found] == [2, True, 2]


USUAL = {"hit": 12, "miss": 12, "coalesced": 12}
EVERYTHING = {status.value: len(BUCKETS) for status in CacheStatus}


@pytest.mark.parametrize(("spread", "megabytes"), [(USUAL, 3), (EVERYTHING, 16)])
async def test_two_days_stay_small_in_redis(
    gate: HealthGatedRedis, redis: Redis, spread: dict[str, int], megabytes: float
) -> None:
    keeping, store = keeper(gate, "w")
    assert await keeping.round()
    fields = {f"latency:{status}:{name}": "812" for status, width in spread.items() for name in BUCKETS[-width:]}
    fields |= {f"queries:{status}": "9000" for status in spread} | {"hits:exact": "6000", "hits:semantic": "3000"}
    sums, observed = await OBSERVED.now()
    row = row_of({**fields, **{name: str(value) for name, value in {**sums, **observed}.items()}})
    text = orjson.dumps({**row, "breaker_ms": {"ollama": {"CLOSED": 60_000}}})
    last = await store.now_ms() // MINUTE_MS // 60 * 60
    for hour in range(last - KEPT_HOURS * 60, last, 60):
        assert await store.write(dict.fromkeys(range(hour, hour + 60), text))
    keys = await redis.keys("rag:history:2*")
    assert len(keys) == KEPT_HOURS
    sizes = [await redis.memory_usage(key, samples=0) or 0 for key in keys]
    assert 1e6 < sum(sizes) < megabytes * 1e6
