"""pybreaker users find familiar names, errors and listeners, and a clear error where it would block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import fakeredis
import pybreaker
import pytest
from redis.asyncio import ConnectionPool, Redis

from api.breaker.fleet_breaker import FleetBreaker, kept_current
from api.breaker.state import BreakerPolicy
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.breaker import RedisBreakerStore
from tests.support.waiting import wait_until_async


class RecordingListener(pybreaker.CircuitBreakerListener):
    """A pybreaker listener as its users write it."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def state_change(self, cb: object, old_state: object, new_state: object) -> None:
        self.changes.append((getattr(old_state, "name", ""), getattr(new_state, "name", "")))


@asynccontextmanager
async def opened(*listeners: pybreaker.CircuitBreakerListener) -> AsyncIterator[FleetBreaker]:
    server = fakeredis.FakeServer()
    pool = ConnectionPool(connection_class=fakeredis.FakeAsyncRedisConnection, server=server)
    gate = HealthGatedRedis(BatchingRedis(connection_pool=pool), 8)
    await gate.check()

    @asynccontextmanager
    async def reader(_: float) -> AsyncIterator[Redis]:
        yield fakeredis.FakeAsyncRedis(server=server, decode_responses=True)

    policy = BreakerPolicy(failure_threshold=3)
    store = RedisBreakerStore(gate, reader, Keys(), "ollama", policy, "w")
    async with kept_current(FleetBreaker("ollama", policy, store, "w", listeners=listeners)) as breaker:
        yield breaker


async def works() -> str:
    return "fine"


async def fails() -> Awaitable[str]:
    raise ConnectionError("no")


async def test_its_attributes_match_pybreaker() -> None:
    async with opened() as breaker:
        assert isinstance(breaker, pybreaker.CircuitBreaker)
        assert (breaker.name, breaker.fail_max, breaker.reset_timeout) == ("ollama", 3, 60)
        assert breaker.current_state == pybreaker.STATE_CLOSED
        await breaker.call(works)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await breaker.call(fails)
        await breaker.reading()
        assert breaker.fail_counter == 2


async def test_it_opens_raises_the_pybreaker_error_and_notifies_listeners_once() -> None:
    heard = RecordingListener()
    async with opened(heard) as breaker:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await breaker.call(fails)
        assert breaker.current_state == pybreaker.STATE_OPEN
        with pytest.raises(pybreaker.CircuitBreakerError):
            await breaker.call(works)

        async def told() -> bool:
            return heard.changes == [("closed", "open")]

        await wait_until_async(told)
        await breaker.override("RESET", "operator")
        assert await breaker.call(works) == "fine"


async def test_excluded_exceptions_are_not_failures() -> None:
    async with opened() as breaker:
        breaker.add_excluded_exception(ConnectionError)
        for _ in range(5):
            with pytest.raises(ConnectionError):
                await breaker.call(fails)
        assert breaker.current_state == pybreaker.STATE_CLOSED


async def test_blocking_calls_raise_a_clear_error() -> None:
    async with opened() as breaker:
        for blocking in (breaker.calling, breaker.open, breaker.close, breaker.half_open):
            with pytest.raises(TypeError, match="attempt"):
                blocking()
