"""One worker probes the backends and loads their models for the whole fleet."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.ollama.backend_health import LEASE
from api.ollama.pool import RESERVE, RetryBudget
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.backend_health import MAX_SPEEDS, BackendHealthStore
from api.redis_store.stores.fleet import FleetRetries, RedisLeaderLease
from tests.stub_ollama import StubOllama
from tests.support.service import Service, make_settings, running_service
from tests.support.waiting import wait_until_async

QUICK = {"ollama_probe_interval": 0.1}
WARM = {"ollama_warm_up": True}


def asked(stub: StubOllama, path: str) -> int:
    count: int = stub.stats["requests"].get(path, 0)
    return count


async def reachable(client: httpx.AsyncClient) -> bool | None:
    found: dict[str, Any] = (await client.get("/api/connection-pool/metrics")).json()["backends"]
    answer: bool | None = found["ollama"]["reachable"]
    return answer


async def test_one_worker_probes_and_all_know(serve: Service, stub: StubOllama, redis: Redis) -> None:
    first, second = await serve(ollama=QUICK), await serve(ollama=QUICK)
    await wait_until_async(lambda: _all_know(first, second, True))
    prober = await redis.get("rag:prober")
    seen: set[bytes | str | None] = set()

    async def probed_often() -> bool:
        seen.add(await redis.hget("rag:backend:ollama", "by"))
        return asked(stub, "/api/ps") > 20

    await wait_until_async(probed_often)
    assert seen == {prober}
    assert await redis.get("rag:prober") == prober
    await stub.refuse()
    await wait_until_async(lambda: _all_know(first, second, False))
    pool = (await first.get("/api/connection-pool/metrics")).json()
    assert set(pool["endpoints"]) <= {"/api/embed"}, "probes count in no figure"


async def test_another_probes_once_the_prober_has_left(
    serve: Service, stub: StubOllama, redis: Redis, redis_url: str
) -> None:
    async with running_service(make_settings(redis_url, stub.base_url, ollama=QUICK)) as leaving:
        await wait_until_async(lambda: reachable(leaving))
        staying = await serve(ollama=QUICK)
        first = await redis.get("rag:prober")
    await wait_until_async(lambda: _is_another(redis, first))
    await stub.refuse()
    await wait_until_async(lambda: _all_know(staying, staying, False))


async def test_the_models_are_loaded_once_and_no_client_ends_it(serve: Service, stub: StubOllama, redis: Redis) -> None:
    stub.behaviour(delay=0.5, resident="no")
    clients = [await serve(ollama=WARM), await serve(ollama=WARM)]
    await wait_until_async(lambda: _asked(stub, "/api/generate"))
    impatient = httpx.AsyncClient(base_url=clients[0].base_url, timeout=0.05)
    async with impatient:
        with pytest.raises(httpx.TimeoutException):
            await impatient.post("/query", json={"question": "Is it there yet?"}, headers={"Cache-Control": "no-cache"})
    for client in clients:
        assert (await client.get("/health/ready")).status_code == 200
    await wait_until_async(lambda: _loaded(stub))

    async def is_done() -> bool:
        """Not released: the lease outlives the work."""
        return bool(await redis.pttl("rag:warmup:ollama") > LEASE * 1000)

    await wait_until_async(is_done)
    assert asked(stub, "/api/generate") == 1
    assert stub.last_bodies["/api/generate"] == {
        "model": "llama3.2",
        "options": {},
        "keep_alive": "5m",
        "stream": False,
    }
    assert "/api/generate" not in (await clients[0].get("/api/connection-pool/metrics")).json()["endpoints"]


async def test_the_models_are_loaded_again_when_ollama_returns(serve: Service, stub: StubOllama) -> None:
    await stub.refuse()
    client = await serve(ollama={**WARM, **QUICK})
    await wait_until_async(lambda: _all_know(client, client, False))
    assert asked(stub, "/api/generate") == 0
    await stub.listen()
    await wait_until_async(lambda: _asked(stub, "/api/generate"))


async def test_a_duty_is_one_workers_until_it_leaves_or_dies(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 1.0, 1.0, 4)) as client:
        gate = HealthGatedRedis(client, 4)
        await gate.check()
        first, second = RedisLeaderLease(gate, "rag:prober", "first"), RedisLeaderLease(gate, "rag:prober", "second")
        assert [await first.acquire(9), await second.acquire(9), await first.acquire(9)] == [True, False, True]
        await second.release()
        assert not await second.acquire(9)
        await first.release()
        assert await second.acquire(0.05)
        await wait_until_async(lambda: first.acquire(9))
        gate.is_up = False
        assert [await first.acquire(9), await second.acquire(9)] == [True, True]


async def test_the_reserve_of_retries_is_the_fleets(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 1.0, 1.0, 4)) as client:
        gate = HealthGatedRedis(client, 4)
        await gate.check()
        budgets = [RetryBudget() for _ in range(4)]
        counts = [FleetRetries(gate, Keys(), budget) for budget in budgets]
        given = 0
        for budget, fleet in zip(budgets, counts, strict=True):
            budget.called()
            await fleet.sync()
            while budget.spend():
                given += 1
            await fleet.sync()
        assert RESERVE <= given <= RESERVE + 1
        await redis.flushall()
        budgets[0].called()
        await counts[0].sync()
        assert budgets[0].spend() == (budgets[0].retried < RESERVE)


async def _all_know(first: httpx.AsyncClient, second: httpx.AsyncClient, up: bool) -> bool:
    return {await reachable(first), await reachable(second)} == {up}


async def _asked(stub: StubOllama, path: str) -> bool:
    return asked(stub, path) > 0


async def _loaded(stub: StubOllama) -> bool:
    return asked(stub, "/api/embed") > 0 and stub.stats["in_flight"] == 0


async def _is_another(redis: Redis, first: bytes | str | None) -> bool:
    now = await redis.get("rag:prober")
    return now is not None and now != first


async def test_the_reading_speed_is_shared_bounded_and_of_one_machine(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 1.0, 1.0, 4)) as client:
        gate = HealthGatedRedis(client, 4)
        await gate.check()
        urls = {"ollama": "http://a:1", "ollama-2": "http://b:1"}
        first, second = (BackendHealthStore(gate, Keys(), urls, worker) for worker in ("one", "two"))
        assert await first.share_speeds({"ollama": {"m:7b": 0.02}, "ollama-2": {}}) == {"ollama": {"m:7b": 0.02}}
        assert await second.share_speeds({"ollama": {}, "ollama-2": {}}) == {"ollama": {"m:7b": 0.02}}
        assert 0 < await redis.pttl("rag:speeds:ollama") <= 24 * 3600 * 1000
        moved = BackendHealthStore(gate, Keys(), {"ollama": "http://c:1"}, "three")
        assert await moved.share_speeds({"ollama": {}}) == {}
        assert await moved.share_speeds({"ollama": {"other": 0.5}}) == {"ollama": {"other": 0.5}}
        assert await moved.share_speeds({"ollama": {}}) == {"ollama": {"other": 0.5}}, "not those of the former machine"
        many = {f"m{number}": 1.0 for number in range(MAX_SPEEDS + 1)}
        await first.share_speeds({"ollama": many})
        assert await second.share_speeds({"ollama": {}, "ollama-2": {}}) == {}


async def test_a_new_worker_knows_how_fast_a_backend_reads(serve: Service, stub: StubOllama, redis: Redis) -> None:
    stub.behaviour(read_pace=0.02)
    question = {"question": " ".join(["word"] * 60)}
    impatient = {**QUICK, "ollama_first_token_timeout": 0.5}
    patient = await serve(ollama=QUICK)
    assert (await patient.post("/query", json=question)).status_code == 200

    async def is_shared() -> bool:
        return bool(await redis.hget("rag:speeds:ollama", "model:llama3.2"))

    await wait_until_async(is_shared)
    no_cache = {"Cache-Control": "no-cache"}
    knows = await serve(ollama=impatient)
    assert (await knows.post("/query", json=question, headers=no_cache)).status_code == 200
