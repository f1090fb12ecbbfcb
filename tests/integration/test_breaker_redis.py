"""Breakers and bulkheads in a separate Redis: each server can fail without the other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.redis_store.acl import acl_line
from api.redis_store.keys import Keys
from tests.stub_ollama import StubOllama
from tests.support.service import ask, make_settings, running_service
from tests.support.waiting import wait_until_async

QUESTION = "How long is the warranty?"
USER, PASSWORD = "guard", "secret"


@pytest.fixture
def guards() -> Iterator[EmbeddedRedis]:
    """The breakers' own Redis, and a user with the least rights there."""
    least = acl_line("breaker", user=USER, prefix="rag:", password=PASSWORD).split()
    with embedded_redis(persistent=False, arguments=("--user", *least[1:])) as server:
        yield server


@pytest.fixture
async def fleet(
    redis: Redis, redis_url: str, guards: EmbeddedRedis, stub: StubOllama
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Two workers, with the least rights on the main Redis too."""
    least = acl_line("main", user="main", prefix="rag:", password=PASSWORD, separate=True).split()
    await redis.execute_command("ACL", "SETUSER", *least[1:])  # type: ignore[no-untyped-call]
    await redis.acl_log_reset()
    url = f"redis://main:{PASSWORD}@{redis_url.removeprefix('redis://')}"
    own: dict[str, Any] = {"url": f"redis://{USER}:{PASSWORD}@127.0.0.1:{guards.port}"}
    settings = make_settings(url, stub.base_url, breaker_redis=own, breaker={"failure_threshold": 3, "timeout": 60})
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_service(settings)) for _ in range(2)]
    async with Redis.from_url(guards.url) as other:
        logs = [await server.acl_log() for server in (redis, other)]
    # `auth`: a Redis that was started again knows no user that was made at run time.
    denied = [entry["object"] for log in logs for entry in log if entry["reason"] != "auth"]
    await redis.execute_command("ACL", "DELUSER", "main")  # type: ignore[no-untyped-call]
    assert denied == []


async def breaker_of(client: httpx.AsyncClient) -> tuple[str, str]:
    report = (await client.get("/api/circuit-breaker/metrics")).json()
    return report["state"], report["store"]


async def health_of(client: httpx.AsyncClient) -> dict[str, Any]:
    health = (await client.get("/health")).json()
    return {name: health[name] for name in ("status", "database", "breaker_database")}


async def break_ollama(client: httpx.AsyncClient, stub: StubOllama) -> None:
    """Failures until it is open: a success that is reported a moment late may break a first row."""
    stub.behaviour("status", status=500, path="/api/chat")

    async def is_rejected() -> bool:
        asked = {"question": "Does it fail?"}
        return bool((await client.post("/query", json=asked)).json()["type"].endswith("circuit-breaker-open"))

    await wait_until_async(is_rejected)


async def test_each_key_is_where_it_belongs(
    fleet: list[httpx.AsyncClient], redis: Redis, guards: EmbeddedRedis, stub: StubOllama
) -> None:
    await ask(fleet[0], QUESTION)
    assert (await ask(fleet[1], QUESTION))["cache"]["status"] == "hit"
    await break_ollama(fleet[0], stub)
    assert [await breaker_of(client) for client in fleet] == [("OPEN", "shared")] * 2
    assert (await fleet[1].get("/api/circuit-breaker/history")).json()["transitions"]
    async with Redis.from_url(guards.url) as own:
        names = {key.decode() async for key in own.scan_iter()}
    assert {"rag:cb:{ollama}", "rag:cb:{ollama}:log", "rag:bulkhead:{ollama}:stats"} <= names
    assert all(name.startswith(("rag:cb:", "rag:bulkhead:")) for name in names)
    guarded = [key async for key in redis.scan_iter() if key.startswith((b"rag:cb:", b"rag:bulkhead:"))]
    assert guarded == []


async def test_the_main_redis_is_lost_and_the_breaker_is_still_shared(
    fleet: list[httpx.AsyncClient], redis_server: EmbeddedRedis, redis: Redis, stub: StubOllama
) -> None:
    redis_server.kill()
    try:
        assert (await ask(fleet[0], QUESTION))["cache"]["status"] == "bypass"
        assert await health_of(fleet[0]) == {"status": "degraded", "database": False, "breaker_database": True}
        await break_ollama(fleet[0], stub)
        assert [await breaker_of(client) for client in fleet] == [("OPEN", "shared")] * 2
        assert (await fleet[1].post("/query", json={"question": QUESTION})).status_code == 503
        bulkhead = (await fleet[1].get("/api/bulkhead/metrics")).json()
        assert bulkhead["store"] == "shared"
    finally:
        redis_server.start()
        await redis.connection_pool.disconnect()


async def test_the_breakers_redis_is_lost_and_the_cache_still_works(
    fleet: list[httpx.AsyncClient], guards: EmbeddedRedis, stub: StubOllama
) -> None:
    await ask(fleet[0], QUESTION)
    guards.kill()
    assert (await ask(fleet[1], QUESTION))["cache"]["kind"] == "exact"
    assert (await ask(fleet[1], "Something new?"))["cache"]["status"] == "miss"
    assert (await ask(fleet[0], "Something new?"))["cache"]["status"] == "hit"
    assert await health_of(fleet[0]) == {"status": "degraded", "database": True, "breaker_database": False}
    await break_ollama(fleet[0], stub)
    assert await breaker_of(fleet[0]) == ("OPEN", "local")
    assert await breaker_of(fleet[1]) == ("CLOSED", "local")
    states = [(await client.get("/health")).json()["circuit_breaker"] for client in fleet]
    assert states == ["OPEN", "CLOSED"]  # each worker's own

    async def shows(value: str) -> bool:
        return f"ragherd_breaker_redis_up {value}" in (await fleet[0].get("/metrics")).text

    await wait_until_async(lambda: shows("0.0"))
    assert "ragherd_redis_up 1.0" in (await fleet[0].get("/metrics")).text
    guards.start()

    async def shared() -> bool:
        return all([(await breaker_of(client))[1] == "shared" for client in fleet])

    await wait_until_async(shared)
    await wait_until_async(lambda: shows("1.0"))
    assert await health_of(fleet[0]) == {"status": "healthy", "database": True, "breaker_database": True}


async def test_a_busy_main_redis_delays_no_change_of_the_breaker(
    fleet: list[httpx.AsyncClient], redis_server: EmbeddedRedis
) -> None:
    """A stopped process is as silent as one in a long script, for as long as the test wants."""
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        forced = asyncio.create_task(fleet[0].post("/api/circuit-breaker/force-open"))
        await wait_until_async(lambda: is_open(fleet[1]))
        assert (await fleet[1].post("/query", json={"question": QUESTION})).status_code == 503
        assert (await forced).status_code == 200
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    assert (await fleet[0].post("/api/circuit-breaker/reset")).status_code == 200


async def is_open(client: httpx.AsyncClient) -> bool:
    return await breaker_of(client) == ("OPEN", "shared")


async def test_who_is_kept_from_the_keys_is_kept_from_the_breakers_too(
    fleet: list[httpx.AsyncClient], redis: Redis
) -> None:
    schema = Keys().corpus_schema

    async def are(store: str) -> bool:
        return {await breaker_of(client) for client in fleet} == {("CLOSED", store)}

    await wait_until_async(lambda: are("shared"))
    await redis.hset(schema, "version", "9.0")
    await wait_until_async(lambda: are("local"))
    assert (await health_of(fleet[0]))["breaker_database"] is False
    await redis.delete(schema)
    await wait_until_async(lambda: are("shared"))
