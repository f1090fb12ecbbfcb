"""The Lua scripts and the pure rules of the breaker agree: hypothesis drives both, on either server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeVar

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import ConnectionPool, Redis
from redis.commands.core import AsyncScript

from api.breaker import breaker_rules as rules
from api.breaker.state import BreakerPolicy, BreakerReading, BreakerState, CallOutcome, State
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.scripts import lua
from api.redis_store.stores.breaker import RedisBreakerStore

T = TypeVar("T")
NOW_KEY = "test:now"
CLOCK = f"(function() local n = tonumber(redis.call('GET', '{NOW_KEY}')) return {{0, n * 1000}} end)()"
POLICY = BreakerPolicy(
    failure_threshold=4,
    timeout_ms=1_000,
    timeout_max_ms=3_000,
    half_open_max_calls=2,
    minimum_calls=5,
    failure_rate=60,
    slow_rate=50,
    window_s=5,
    stable_ms=8_000,
    lease_ms=700,
)
TOKENS = st.sampled_from(["a", "b", "c", "d"])
OUTCOMES = st.lists(st.sampled_from(list(CallOutcome)), min_size=1, max_size=5)


class ClockedStore(RedisBreakerStore):
    """The store, its scripts reading the time from a key instead of from TIME."""

    def _script(self, operation: str) -> AsyncScript:
        text = lua("stores/breaker", operation)
        assert text.count("redis.call('TIME')") == 1
        return self._redis.client.register_script(text.replace("redis.call('TIME')", CLOCK))


def no_reader(_: float) -> AbstractAsyncContextManager[Redis]:
    raise AssertionError("nobody follows the log here")


class SideBySide(RuleBasedStateMachine):
    """Every step is taken by the scripts and by the rules; replies and states must agree."""

    url: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        faked = ConnectionPool(connection_class=fakeredis.FakeAsyncRedisConnection, server=fakeredis.FakeServer())
        self.client = BatchingRedis.from_url(self.url) if self.url else BatchingRedis(connection_pool=faked)
        gate = HealthGatedRedis(self.client, 4)
        gate.is_up = True
        self.store = ClockedStore(gate, no_reader, Keys("test:"), "b", POLICY, "w")
        self.now = 1_000_000
        self.epochs = [self.now]
        self.model = BreakerState(epoch=self.now, since_ms=self.now, until_ms=self.now, reason="init")

    def run(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.run(self.client.flushall())
        self.run(self.client.aclose())
        self.loop.close()

    @initialize()
    def begin(self) -> None:
        self.run(self.client.flushall())
        self.run(self.client.set(NOW_KEY, self.now))
        self.run(self.store.record(0, "", [], 0))

    @rule(milliseconds=st.sampled_from([1, 100, 250, 699, 700, 701, 1_000, 2_000, 3_000, 9_000]))
    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.run(self.client.set(NOW_KEY, self.now))

    @rule(token=TOKENS)
    def admit(self, token: str) -> None:
        self.model, expected = rules.admit(self.model, POLICY, self.now, token, "w")
        assert self.run(self.store.admit(token)) == expected

    @rule(outcomes=OUTCOMES, age=st.integers(0, 2), rejected=st.integers(0, 2))
    def record(self, outcomes: list[CallOutcome], age: int, rejected: int) -> None:
        """Coalesced results of this epoch or of an older one."""
        self._record(self.epochs[max(-len(self.epochs), -1 - age)], "", outcomes, rejected)

    @rule(token=TOKENS, outcome=st.sampled_from(list(CallOutcome)))
    def record_probe(self, token: str, outcome: CallOutcome) -> None:
        self._record(self.model.epoch, token, [outcome], 0)

    def _record(self, epoch: int, token: str, outcomes: list[CallOutcome], rejected: int) -> None:
        self.model, expected = rules.record(self.model, POLICY, self.now, epoch, token, outcomes, "w", rejected)
        assert self.run(self.store.record(epoch, token, outcomes, rejected)) == expected

    @rule(token=TOKENS)
    def renew(self, token: str) -> None:
        self.model, expected = rules.renew(self.model, POLICY, self.now, token)
        assert self.run(self.store.renew(token)) == expected

    @rule(action=st.sampled_from(["OPEN", "CLOSED", "RESET", "RESET"]))
    def override(self, action: Any) -> None:
        if action == "RESET":
            self.model, _ = rules.reset(self.model, "op", self.now)
        else:
            self.model, _ = rules.force(self.model, State(action), "op", self.now)
        self.run(self.store.override(action, "op"))

    @invariant()
    def same(self) -> None:
        if self.epochs[-1] != self.model.epoch:
            self.epochs.append(self.model.epoch)
        expected = rules.read(self.model, POLICY, self.now)
        assert self.run(self.store.read()) == _without_maps(expected)
        assert len(self.model.permits) <= POLICY.half_open_max_calls


def _without_maps(reading: BreakerReading) -> BreakerReading:
    """What the store's `read` gives: sums instead of the window and the permits."""
    return replace(reading, breaker=replace(reading.breaker, window={}, permits={}))


@pytest.mark.once(reason="it checks the Lua scripts")
@pytest.mark.parametrize("server", ["fakeredis", "redis-server"])
def test_scripts_and_rules_agree(server: str, request: pytest.FixtureRequest) -> None:
    class Machine(SideBySide):
        url = request.getfixturevalue("redis_url") if server == "redis-server" else None

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )
