"""The gate on a real Redis: what happens when Redis is found again, and when that goes wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.breaker import fleet_breaker as following
from api.embedded.redis_server import EmbeddedRedis
from api.errors import StoreUnavailable
from api.observability.metrics import Metrics
from api.ports.telemetry import Telemetry
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.semantic_index import SemanticIndex
from api.wiring.backends import open_backends
from tests.stub_ollama import StubOllama
from tests.support.service import make_settings, running_service
from tests.support.waiting import wait_until_async


@pytest.fixture
def gate(redis: BatchingRedis) -> HealthGatedRedis:
    """A gate that has not been asked yet."""
    return HealthGatedRedis(redis, 4)


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ConnectionResetError(), TimeoutError(), KeyError()])
async def test_a_fault_while_redis_is_made_ready_means_still_down_and_raises_nothing(
    gate: HealthGatedRedis, error: Exception
) -> None:
    faults = [error]

    async def make_ready() -> None:
        if faults:
            raise faults.pop()

    gate.on_recovery(make_ready)
    assert await gate.check() is False
    assert await gate.check() is True


async def test_hooks_run_once_redis_is_up_and_one_that_fails_stops_no_other(gate: HealthGatedRedis) -> None:
    seen: list[bool] = []

    async def fail() -> None:
        raise KeyError

    async def look() -> None:
        seen.append(await gate.run("ping", lambda client: client.ping()))

    gate.after_recovery(fail)
    gate.after_recovery(look)
    assert await gate.check() is True
    assert await gate.check() is True
    assert seen == [True]


async def test_a_user_that_may_not_list_indexes_still_has_a_search_module(redis: BatchingRedis, redis_url: str) -> None:
    await redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-ft._list")
    try:
        async with BatchingRedis.from_url(redis_url, username="app", password="pw") as client:
            gate = HealthGatedRedis(client, 4)
            index = SemanticIndex(gate, Keys().partition(""))
            assert await gate.check() is True
            assert index.supported
    finally:
        await redis.execute_command("ACL", "DELUSER", "app")


async def test_breakers_are_shared_again_as_soon_as_redis_is_found(
    gate: HealthGatedRedis,
    redis_server: EmbeddedRedis,
    stub: StubOllama,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 60)
    monkeypatch.setattr(following, "RECONNECT_SECONDS", 60)
    address = RedisAddress(redis_server.url, timeout=1.0, connect_timeout=1.0, max_connections=4)
    metrics = Metrics(CollectorRegistry(), "0")
    await gate.check()
    settings = make_settings(redis_server.url, stub.base_url)
    async with open_backends(settings, "w", metrics, Telemetry(), gate, gate, address) as backends:
        redis_server.kill()
        try:
            for breaker in backends.breakers.values():
                await breaker.refresh()
            assert {breaker.store_name for breaker in backends.breakers.values()} == {"local"}
        finally:
            redis_server.start()
        assert await gate.check() is True
        assert {breaker.store_name for breaker in backends.breakers.values()} == {"shared"}


async def test_a_connection_that_does_not_even_close_in_time_is_a_lost_redis_and_no_more(
    gate: HealthGatedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(**_: bool) -> None:
        raise RedisTimeoutError("Timed out closing connection")

    async def fail(_: Redis) -> None:
        raise RedisTimeoutError("Timeout reading")

    assert await gate.check()
    monkeypatch.setattr(gate.client.connection_pool, "disconnect", stuck)
    with pytest.raises(StoreUnavailable, match="Timeout reading"):
        await gate.run("ping", fail)
    assert await gate.check()


async def test_health_that_is_asked_for_all_the_time_loses_no_redis(
    redis: Redis, redis_url: str, stub: StubOllama, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(redis_url, stub.base_url, redis={"max_connections": 2})
    async with running_service(settings) as client:
        found = await asyncio.gather(*(client.get("/health") for _ in range(50)))
        assert [health.json()["database"] for health in found] == [True] * 50
    assert "redis_lost" not in capfd.readouterr().err


async def test_a_worker_that_has_no_connection_left_has_not_lost_redis(gate: HealthGatedRedis) -> None:
    async def refuse(_: Redis) -> None:
        raise MaxConnectionsError("Too many connections")

    assert await gate.check()
    with pytest.raises(StoreUnavailable, match="Too many"):
        await gate.run("ping", refuse)
    assert gate.is_up


async def test_a_reply_that_nobody_read_is_no_other_command_s(redis: Redis, redis_url: str) -> None:
    await redis.config_resetstat()
    async with short_commands(RedisAddress(redis_url, timeout=1.0, connect_timeout=1.0, max_connections=4)) as client:
        connection: Any = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        await connection.send_command("ECHO", "another's")
        await wait_until_async(connection.can_read)
        await client.connection_pool.release(connection)
        assert await client.echo("own") == b"own"
        assert (await client.info("errorstats")) == {}, "each connection begins with commands that the server knows"


async def test_the_failure_of_a_command_from_before_a_recovery_closes_nothing(gate: HealthGatedRedis) -> None:
    started, fails = asyncio.Event(), asyncio.Event()

    async def old(_: Redis) -> None:
        started.set()
        await fails.wait()
        raise RedisConnectionError("the connection of before")

    async def breaks(_: Redis) -> None:
        raise RedisConnectionError("gone")

    assert await gate.check()
    command = asyncio.create_task(gate.run("old", old))
    await started.wait()
    with pytest.raises(StoreUnavailable):
        await gate.run("new", breaks)
    assert not gate.is_up
    assert await gate.check()
    fails.set()
    with pytest.raises(StoreUnavailable):
        await command
    assert gate.is_up, "Redis was found up after that command had begun"


async def test_a_check_from_before_a_recovery_closes_nothing(redis: BatchingRedis) -> None:
    asked: list[asyncio.Future[None]] = []

    async def ask(_: Redis) -> None:
        asked.append(asyncio.get_running_loop().create_future())
        await asked[-1]

    gate = HealthGatedRedis(redis, 4, ask=ask)
    checks = [asyncio.create_task(gate.check()) for _ in range(2)]
    await wait_until_async(lambda: _is(len(asked) == 2))
    asked[1].set_result(None)
    assert await checks[1]
    asked[0].set_exception(RedisTimeoutError("slow"))
    await checks[0]
    assert gate.is_up


async def test_connections_in_use_when_redis_is_lost_serve_no_command_afterwards(redis: Redis, redis_url: str) -> None:
    """One that hangs is not noticed before the next command uses it."""
    address = RedisAddress(redis_url, timeout=1.0, connect_timeout=1.0, max_connections=4)
    async with short_commands(address) as client:
        gate = HealthGatedRedis(client, 4)
        assert await gate.check()
        used, goes_on = asyncio.Event(), asyncio.Event()

        async def hold() -> int:
            connection: Any = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            await connection.send_command("CLIENT", "ID")
            number: int = await connection.read_response()
            used.set()
            await goes_on.wait()
            await client.connection_pool.release(connection)
            return number

        async def breaks(_: Redis) -> None:
            raise RedisConnectionError("gone")

        holding = asyncio.create_task(hold())
        await used.wait()
        with pytest.raises(StoreUnavailable):
            await gate.run("new", breaks)
        goes_on.set()
        old = await holding
        assert await gate.check()
        assert await gate.run("id", lambda one: one.client_id()) != old


async def _is(value: bool) -> bool:
    return value
