"""A breaker in this process on a real Redis: what strangers write, listeners that raise, callers that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pybreaker
import pytest
from redis.asyncio import Redis

from api.breaker import following
from api.breaker.fleet_breaker import BreakerListener, FleetBreaker
from api.breaker.following import kept_current
from api.breaker.state import Outcome, Policy, State, Transition
from api.redis_store.breaker_store import RedisBreakerStore
from api.redis_store.client import RedisAddress, blocking_reader
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from tests.service import Service
from tests.waiting import wait_until_async

POLICY = Policy(failure_threshold=2, timeout_ms=1, timeout_max_ms=1, half_open_max_calls=1)
HASH, LOG, PERMITS = "rag:cb:{ollama}", "rag:cb:{ollama}:log", "rag:cb:{ollama}:permits"


class Heard(BreakerListener):
    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        self.transitions.append(transition)


class Raising(BreakerListener):
    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        raise KeyError(transition.epoch)

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: Outcome) -> None:
        raise KeyError(outcome)


@pytest.fixture
async def store(redis: Redis, redis_url: str) -> RedisBreakerStore:
    gate = RedisGate(redis, 4)
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
        await wait_until_async(lambda: _true(heard.transitions), timeout=2)
    assert [transition.to_state for transition in heard.transitions] == [State.OPEN]
    assert len(await store.history(10)) == 1


async def test_the_endpoints_skip_what_they_can_not_read(serve: Service, redis: Redis) -> None:
    client = await serve()
    await redis.xadd(LOG, {"foo": "bar"})
    await redis.hset(HASH, mapping={"state": "BROKEN", "opens_in_a_row": "many"})  # type: ignore[misc]
    for path in ("history", "recovery", "metrics"):
        answered = await client.get(f"/api/circuit-breaker/{path}")
        assert answered.status_code == 200, answered.text
    assert answered.json()["state"] == "CLOSED"


async def test_a_state_nobody_knows_is_closed_and_the_rules_go_on(redis: Redis, store: RedisBreakerStore) -> None:
    async with kept_current(breaker_on(store)) as breaker:
        await redis.hset(HASH, "state", "BROKEN")  # type: ignore[misc]
        await breaker.refresh()
        assert breaker.view.position.state is State.CLOSED
        await fail(breaker, 2)
        assert breaker.view.position.state is State.OPEN


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
    async with asyncio.timeout(5), kept_current(breaker_on(store, heard)) as breaker:
        started.set()
        await wait_until_async(lambda: _true(not faults), timeout=2)
        before = breaker.view.reading
        await wait_until_async(lambda: _true(breaker.view.reading is not before), timeout=2)

        async def heard_of_it() -> bool:
            await store.override("RESET", "operator")
            return bool(heard.transitions)

        await wait_until_async(heard_of_it, timeout=3)


# -- listeners --------------------------------------------------------------------------------------------------------


async def test_a_listener_that_raises_harms_neither_calls_nor_other_listeners(store: RedisBreakerStore) -> None:
    heard = Heard()
    async with kept_current(breaker_on(store, Raising(), heard)) as breaker:
        await fail(breaker, 2)
        await wait_until_async(lambda: _true(heard.transitions), timeout=2)
        await breaker.override("RESET", "operator")
        await wait_until_async(lambda: _true(len(heard.transitions) == 2), timeout=2)


async def _true(value: object) -> bool:
    return bool(value)
