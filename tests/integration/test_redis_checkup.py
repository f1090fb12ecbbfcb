"""Warnings about the configuration of Redis in the log, /health and metrics; and a Redis that accepts no writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.redis_store import diagnostics as checkup
from api.redis_store.connections import BatchingRedis
from api.redis_store.diagnostics import RedisCheckup
from api.redis_store.health_gated import HealthGatedRedis, RedisHealthEvents
from tests.stub_ollama import StubOllama
from tests.support.service import ask, make_settings, running_service
from tests.support.waiting import wait_until_async

QUESTION = "How long is the warranty?"


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A Redis for one test, which may change its configuration."""
    with embedded_redis() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "LOOK_SECONDS", 0.1)


async def warnings(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    found = (await client.get("/health")).json()["redis_warnings"]
    assert all(warning["advice"] for warning in found)
    return [(warning["store"], warning["name"]) for warning in found]


async def test_a_redis_that_is_set_up_well_gives_no_warning(
    server: EmbeddedRedis, stub: StubOllama, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_service(make_settings(server.url, stub.base_url)) as client:
        assert await warnings(client) == []
    assert "redis_warning" not in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
async def test_a_warning_comes_and_goes_with_its_reason(
    server: EmbeddedRedis, stub: StubOllama, capfd: pytest.CaptureFixture[str]
) -> None:
    async with (
        Redis.from_url(server.url) as redis,
        running_service(make_settings(server.url, stub.base_url)) as client,
    ):
        await redis.config_set("maxmemory-policy", "allkeys-lru")

        async def is_said() -> bool:
            return ("main", "evicts_all") in await warnings(client)

        async def is_shown(value: str) -> bool:
            line = f'ragherd_redis_warnings{{store="main",warning="evicts_all"}} {value}'
            return line in (await client.get("/metrics")).text

        await wait_until_async(is_said)
        await wait_until_async(lambda: is_shown("1.0"))
        assert (await client.get("/health")).json()["status"] == "healthy"
        await redis.config_set("maxmemory-policy", "noeviction")
        await wait_until_async(lambda: is_shown("0.0"))
        assert await warnings(client) == []
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "evicts_all" in line]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("redis_warning", "warning"),
        ("redis_warning_over", "info"),
    ]
    assert "Set maxmemory-policy to volatile-lfu" in lines[0]["message"]


@pytest.mark.usefixtures("quick")
async def test_a_redis_that_runs_out_of_memory_shows_it_and_counts_the_evicted_keys(
    server: EmbeddedRedis, stub: StubOllama
) -> None:
    async with (
        Redis.from_url(server.url) as redis,
        running_service(make_settings(server.url, stub.base_url)) as client,
    ):

        async def value(name: str) -> float:
            found = re.findall(
                rf'^ragherd_redis_{name}{{store="main"}} (\S+)$', (await client.get("/metrics")).text, re.MULTILINE
            )
            return float(found[0]) if found else -1

        async def is_without_limit() -> bool:
            return await value("memory_used_ratio") == 0 and await value("memory_used_bytes") > 0

        async def is_full() -> bool:
            return await value("memory_used_ratio") > 0.9 and await value("evicted_keys") > 0

        await wait_until_async(is_without_limit)
        assert await value("evicted_keys") == 0
        for number in range(100):
            await redis.set(f"other:{number}", "x" * 10_000, ex=600)
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory-policy", "volatile-lfu")
        await redis.config_set("maxmemory", used - 100_000)
        await redis.set("other:last", "x" * 10_000, ex=600)
        await wait_until_async(is_full)


async def test_it_is_looked_at_again_when_it_is_found_again(stub: StubOllama) -> None:
    with embedded_redis() as server:
        async with BatchingRedis.from_url(server.url) as redis:
            gate = HealthGatedRedis(redis, 4)
            found = RedisCheckup(gate, "main")
            assert await gate.check()
            assert [warning.name for warning in found.warnings] == []
            server.kill()
            assert not await gate.check()
            server.start()
            await redis.config_set("appendonly", "no")
            assert await gate.check()
            assert [warning.name for warning in found.warnings] in (["not_persistent"], ["snapshots_only"])


async def test_a_user_that_may_not_ask_is_said(server: EmbeddedRedis) -> None:
    async with BatchingRedis.from_url(server.url) as redis:
        rights: tuple[Any, ...] = ("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info")
        await redis.execute_command(*rights)
        async with BatchingRedis.from_url(server.url, username="app", password="pw") as app:
            gate = HealthGatedRedis(app, 4)
            found = RedisCheckup(gate, "main")
            assert await gate.check()
            assert [warning.name for warning in found.warnings] == ["unchecked"]


class Turns(RedisHealthEvents):
    """How often it was found."""

    def __init__(self) -> None:
        self.found_times = 0

    def found(self) -> None:
        self.found_times += 1


async def test_one_that_takes_no_writes_is_lost_until_it_does(
    redis: BatchingRedis, redis_url: str, stub: StubOllama, server: EmbeddedRedis, capfd: pytest.CaptureFixture[str]
) -> None:
    async with (
        BatchingRedis.from_url(server.url) as replica,
        running_service(make_settings(server.url, stub.base_url)) as client,
    ):
        await ask(client, QUESTION)
        turns = Turns()
        gate = HealthGatedRedis(replica, 4, turns)
        assert await gate.check()
        host, port = redis_url.removeprefix("redis://").split(":")
        await replica.replicaof(host, port)

        async def has(**fields: Any) -> bool:
            health = (await client.get("/health")).json()
            return {name: health[name] for name in fields} == fields

        await wait_until_async(lambda: has(status="degraded", database=False))
        for _ in range(20):  # PING would be answered
            assert await gate.check() is False
        assert await warnings(client) == [("main", "read_only")]
        assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
        assert turns.found_times == 1
        await replica.replicaof("NO", "ONE")
        await wait_until_async(lambda: has(status="healthy", database=True))
        assert ("main", "read_only") not in await warnings(client)
    lines = capfd.readouterr().err.splitlines()
    lost = [json.loads(line) for line in lines if '"redis_lost"' in line]
    assert "read-only replica" in next(line["message"] for line in lost if "replica" in line["error"])
    assert len([line for line in lines if '"redis_found"' in line]) == 2


@pytest.mark.parametrize("refusal", ["min-replicas-to-write", "maxmemory"])
async def test_one_that_refuses_writes_for_another_reason_is_still_read(server: EmbeddedRedis, refusal: str) -> None:
    async with BatchingRedis.from_url(server.url) as redis:
        gate = HealthGatedRedis(redis, 4)
        await redis.config_set(refusal, "1")
        assert await gate.check() is True
        assert await gate.run("get", lambda client: client.get("rag:nothing")) is None
