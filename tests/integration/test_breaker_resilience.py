"""A breaker in this process on a real Redis: foreign data, listeners that raise, callers that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pybreaker
import pytest
from redis.asyncio import Redis

from api.breaker import fleet_breaker as following
from api.breaker.fleet_breaker import FleetBreaker, kept_current
from api.breaker.state import BreakerListener, BreakerPolicy, CallOutcome, State, Transition
from api.errors import StoreUnavailable
from api.redis_store.client import RedisAddress, blocking_reader
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.breaker import RedisBreakerStore
from api.redis_store.stores.fleet import CacheCounters
from tests.support.service import Service
from tests.support.waiting import wait_until_async

POLICY = BreakerPolicy(failure_threshold=2, timeout_ms=1, timeout_max_ms=1, half_open_max_calls=1)
HASH, LOG, PERMITS = "rag:cb:{ollama}", "rag:cb:{ollama}:log", "rag:cb:{ollama}:permits"


class Heard(BreakerListener):
    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        self.transitions.append(transition)


class Raising(BreakerListener):
    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        raise KeyError(transition.epoch)

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: CallOutcome) -> None:
        raise KeyError(outcome)


@pytest.fixture
async def store(redis: BatchingRedis, redis_url: str) -> RedisBreakerStore:
    gate = HealthGatedRedis(redis, 4)
    await gate.check()
    address = RedisAddress(redis_url, timeout=1.0, connect_timeout=1.0, max_connections=4)
    return RedisBreakerStore(gate, partial(blocking_reader, address), Keys(), "ollama", POLICY, "w")


def breaker_on(store: Any, *listeners: BreakerListener) -> FleetBreaker:
    return FleetBreaker("ollama", POLICY, store, "w", listeners=listeners)


async def fail(breaker: FleetBreaker, times: int) -> None:
    for _ in range(times):
        async with breaker.attempt() as attempt:
            await attempt.failed(0.0)


# -- what strangers write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"foo": "bar"}, {b"\xff": b"\xff"}])
async def test_entries_nobody_can_read_are_skipped_by_those_who_follow(
    redis: Redis, store: RedisBreakerStore, fields: Any
) -> None:
    heard = Heard()
    async with kept_current(breaker_on(store, heard)) as breaker:
        await redis.xadd(LOG, fields)
        await fail(breaker, 2)
        await wait_until_async(lambda: _true(heard.transitions))
    assert [transition.to_state for transition in heard.transitions] == [State.OPEN]
    assert len(await store.history(10)) == 1


async def test_the_endpoints_skip_what_they_can_not_read(serve: Service, redis: Redis) -> None:
    client = await serve()
    await redis.xadd(LOG, {"foo": "bar"})
    await redis.hset(HASH, mapping={"state": "BROKEN", "opens_in_a_row": "many"})
    for path in ("history", "recovery", "metrics"):
        answered = await client.get(f"/api/circuit-breaker/{path}")
        assert answered.status_code == 200, answered.text
    assert answered.json()["state"] == "CLOSED"


async def test_a_state_nobody_knows_is_closed_and_the_rules_go_on(redis: Redis, store: RedisBreakerStore) -> None:
    async with kept_current(breaker_on(store)) as breaker:
        await redis.hset(HASH, "state", "BROKEN")
        await breaker.refresh()
        states = [breaker.view.position.state]
        await fail(breaker, 2)
        states.append(breaker.view.position.state)
        assert states == [State.CLOSED, State.OPEN]


async def test_a_fault_nobody_thought_of_ends_neither_the_start_nor_the_following(
    store: RedisBreakerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    faults: list[Exception] = [KeyError("follow"), KeyError("refresh")]
    follow, read, heard = store.follow, store.read, Heard()

    async def faulty_follow() -> AsyncIterator[list[Transition]]:
        if faults and faults[0].args == ("follow",):
            raise faults.pop(0)
        async for transitions in follow():
            yield transitions

    async def faulty_read() -> Any:
        if started.is_set() and faults:
            raise faults.pop()
        return await read()

    started = asyncio.Event()
    monkeypatch.setattr(store, "follow", faulty_follow)
    monkeypatch.setattr(store, "read", faulty_read)
    async with asyncio.timeout(20), kept_current(breaker_on(store, heard)) as breaker:
        started.set()
        await wait_until_async(lambda: _true(not faults))
        before = breaker.view.reading
        await wait_until_async(lambda: _true(breaker.view.reading is not before))

        async def heard_of_it() -> bool:
            await store.override("RESET", "operator")
            return bool(heard.transitions)

        await wait_until_async(heard_of_it)


# -- listeners --------------------------------------------------------------------------------------------------------


async def test_a_listener_that_raises_harms_neither_calls_nor_other_listeners(store: RedisBreakerStore) -> None:
    heard = Heard()
    async with kept_current(breaker_on(store, Raising(), heard)) as breaker:
        await fail(breaker, 2)
        await wait_until_async(lambda: _true(heard.transitions))
        await breaker.override("RESET", "operator")
        await wait_until_async(lambda: _true(len(heard.transitions) == 2))


# -- callers that leave -----------------------------------------------------------------------------------------------


class Held(RedisBreakerStore):
    """Carries out what it is asked only when let go."""

    gate_open: asyncio.Event
    asked: asyncio.Event

    async def admit(self, token: str) -> Any:
        self.asked.set()
        await self.gate_open.wait()
        return await super().admit(token)

    async def record(self, epoch: int, token: str, outcomes: list[CallOutcome], rejected: int) -> Any:
        self.asked.set()
        await self.gate_open.wait()
        return await super().record(epoch, token, outcomes, rejected)


@pytest.fixture
def held(store: RedisBreakerStore) -> Held:
    store.__class__ = Held
    assert isinstance(store, Held)
    store.gate_open, store.asked = asyncio.Event(), asyncio.Event()
    store.gate_open.set()
    return store


async def opened(store: Held) -> FleetBreaker:
    """A breaker whose wait is over: the next call is a probe."""
    breaker = breaker_on(store)
    await fail(breaker, 2)
    assert breaker.view.position.state is State.OPEN
    await wait_until_async(lambda: _true(breaker.view.remaining == 0))
    store.gate_open.clear()
    store.asked.clear()
    return breaker


async def leave(calling: asyncio.Task[None], store: Held) -> None:
    await store.asked.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    store.gate_open.set()


async def test_who_leaves_while_asking_gives_the_permit_back(redis: Redis, held: Held) -> None:
    breaker = await opened(held)
    await leave(asyncio.create_task(fail(breaker, 1)), held)

    async def probed() -> bool:
        return await redis.hget(HASH, "ignored_calls") == b"1"

    await wait_until_async(probed)
    assert await redis.zcard(PERMITS) == 0
    await breaker.aclose()


async def test_the_outcome_of_a_probe_arrives_also_when_its_caller_leaves(redis: Redis, held: Held) -> None:
    breaker = await opened(held)
    held.gate_open.set()
    admitted = asyncio.Event()

    async def probe() -> None:
        async with breaker.attempt() as attempt:
            held.gate_open.clear()
            held.asked.clear()
            admitted.set()
            await attempt.succeeded(0.0)

    calling = asyncio.create_task(probe())
    await admitted.wait()
    await leave(calling, held)

    async def closed() -> bool:
        return await redis.hget(HASH, "state") == b"CLOSED"

    await wait_until_async(closed)
    await breaker.aclose()


async def test_a_flush_of_counters_that_is_cancelled_loses_nothing(redis: BatchingRedis) -> None:
    gate = HealthGatedRedis(redis, 1)
    await gate.check()
    counters, busy, free = CacheCounters(gate, Keys(), "w"), asyncio.Event(), asyncio.Event()

    async def occupy(_: Redis) -> None:
        busy.set()
        await free.wait()

    occupying = asyncio.create_task(gate.run("ping", occupy))
    await busy.wait()
    counters.add("hits", 3)
    flushing = asyncio.create_task(counters.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    free.set()
    await occupying
    assert (await counters.totals())["hits"] == 3


async def test_counters_whose_reply_was_lost_are_added_once(redis: BatchingRedis) -> None:
    gate = HealthGatedRedis(redis, 4)
    await gate.check()
    lossy = LosesReplies(gate)
    counters = CacheCounters(lossy, Keys(), "w")  # type: ignore[arg-type]
    counters.add("hits", 3)
    lossy.loses = True
    await counters.flush()
    counters.add("hits", 2)
    await counters.flush()
    lossy.loses = False
    await counters.flush()
    assert (await counters.totals())["hits"] == 5
    assert await redis.hgetall(Keys().cache_stats) == {b"hits": b"5"}


class LosesReplies:
    """A gate whose commands are carried out, and whose replies are lost while `loses`."""

    def __init__(self, gate: HealthGatedRedis) -> None:
        self._gate = gate
        self.client = gate.client
        self.loses = False
        self.is_up = True

    def of(self, _: str) -> LosesReplies:
        return self

    async def run(self, operation: str, command: Any) -> Any:
        reply = await self._gate.run(operation, command)
        if self.loses:
            raise StoreUnavailable("Timeout reading")
        return reply


async def _true(value: object) -> bool:
    return bool(value)
