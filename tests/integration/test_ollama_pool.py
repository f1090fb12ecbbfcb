"""The connection pool with a stub: opened at start, reused, counted, and repaired when the server closes
connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from api.app import create_app
from api.errors import UpstreamError, UpstreamFault
from api.observability import worker_facts
from api.ollama.generation import Deadlines, OllamaModel
from api.ollama.models import OllamaModels
from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.ports.question import Query
from api.values import ChatMessage, GenerationEnd, GenerationRequest
from tests.stub_ollama import StubOllama, running_stub, stub_process
from tests.support.service import make_settings
from tests.support.waiting import wait_until_async


@pytest.fixture
async def stub() -> AsyncIterator[StubOllama]:
    async with running_stub() as stub:
        yield stub


async def answered(pool: OllamaPool, question: str = "hello") -> None:
    request = GenerationRequest("llama3.2", (ChatMessage("user", question),))
    async with OllamaModel(pool, Deadlines()).stream(request) as stream:
        assert isinstance([event async for event in stream][-1], GenerationEnd)


async def test_the_minimum_is_open_at_start(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits()) as pool:
        seen = pool.snapshot()
        assert stub.stats["connections_open"] == 5
    assert (seen.pool_connections, seen.pool_maxsize, seen.max_keepalive_connections) == (5, 15, 30)
    assert (seen.idle, seen.active, seen.connections_opened, seen.requests) == (5, 0, 5, 0)
    await wait_until_async(lambda: _connections(stub, 0))


async def test_the_minimum_is_kept_though_nobody_uses_it(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits(min_size=3, keepalive_expiry=0.2)) as pool:
        keeping = asyncio.create_task(pool.keep_minimum())
        try:
            stub.break_connections()

            async def open_again() -> bool:
                return pool.snapshot().connections_opened >= 6 and pool.snapshot().idle >= 3

            await wait_until_async(open_again)
        finally:
            keeping.cancel()


async def test_a_worker_counts_what_ended_just_before_it(
    stub: StubOllama, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.flushall()
    monkeypatch.setattr(worker_facts, "MEASURE_SECONDS", 3600.0)
    app = create_app(make_settings(redis_url, stub.base_url), owns_process=False)

    async with app.router.lifespan_context(app) as state:
        assert state is not None
        await state["worker"].queries.answer(Query("Why?", "acme", "llama3.2"))

    counted = app.state.metrics.exposition()[0].decode()
    assert 'ragherd_ollama_generations_total{backend="ollama"} 1.0' in counted
    assert 'ragherd_ollama_tokens_total{backend="ollama",direction="completion"} 0.0' not in counted


async def test_connections_are_reused_and_counted(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits()) as pool:
        for _ in range(20):
            await answered(pool)
        seen = pool.snapshot()
    assert (seen.requests, seen.connections_opened, seen.connections_reused, seen.reuse_rate) == (20, 5, 20, 1.0)
    chat = seen.endpoints["/api/chat"]
    assert (chat.requests, chat.errors) == (20, 0)
    assert 0 < chat.time_to_first_byte_ms <= chat.latency_ms.p50 <= chat.latency_ms.p95 <= chat.latency_ms.p99
    assert stub.stats["connections_accepted"] == 5


async def test_never_more_than_the_maximum(stub: StubOllama) -> None:
    stub.behaviour(delay=0.02)
    async with open_pool(stub.base_url, PoolLimits(min_size=0, max_size=3)) as pool:
        calls = [asyncio.create_task(answered(pool)) for _ in range(12)]
        await wait_until_async(lambda: _waiting(pool, 9))
        await asyncio.gather(*calls)
        seen = pool.snapshot()
    assert stub.stats["max_in_flight"] == 3
    assert stub.stats["connections_accepted"] == 3
    assert (seen.connections_opened, seen.connections_reused, seen.reuse_rate) == (3, 9, 0.75)
    assert seen.wait_ms.p99 >= 20
    assert seen.endpoints["/api/chat"].connect_ms > 0


async def test_an_ollama_that_is_down_at_start_is_no_error(stub: StubOllama) -> None:
    await stub.refuse()
    async with open_pool(stub.base_url, PoolLimits()) as pool:
        assert pool.snapshot().connections_opened == 0
        assert not await OllamaModels(pool).reachable()
        await stub.listen()
        assert await OllamaModels(pool).reachable()
        await answered(pool)


async def test_an_ollama_that_hangs_at_start_delays_it_by_no_more_than_the_connect_timeout(stub: StubOllama) -> None:
    stub.behaviour("hang", path="/api/version")
    async with asyncio.timeout(2), open_pool(stub.base_url, PoolLimits(connect_timeout=0.1)) as pool:
        stub.behaviour()
        assert pool.snapshot().active == 0
        await answered(pool)


async def test_kept_connections_that_the_server_closed_cost_no_answer(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits()) as pool:
        stub.break_connections()
        for _ in range(3):
            await answered(pool)
        assert pool.snapshot().reuse_rate < 1


async def test_a_kept_connection_closed_before_any_byte_is_retried_once_on_a_fresh_one(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits(min_size=3)) as pool:
        stub.behaviour("close", times=1)
        await answered(pool)
        seen = pool.snapshot()
    assert stub.stats["requests"]["/api/chat"] == 2
    assert (seen.requests, seen.connections_opened, seen.connections_reused) == (2, 4, 1)
    assert seen.endpoints["/api/chat"].errors == 1


async def test_a_fresh_connection_closed_before_any_byte_is_lost_not_stale(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits(min_size=0)) as pool:
        stub.behaviour("close")
        with pytest.raises(UpstreamError) as caught:
            await answered(pool)
    assert caught.value.fault is UpstreamFault.CONNECTION_LOST
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_a_server_that_closes_after_each_answer_is_served_over_new_connections(stub: StubOllama) -> None:
    stub.behaviour("close_after")
    async with open_pool(stub.base_url, PoolLimits(min_size=0)) as pool:
        for count in range(1, 4):
            await answered(pool)
            await wait_until_async(lambda: _connections(stub, 0))
            assert pool.snapshot().connections_opened >= count
        assert pool.snapshot().endpoints["/api/chat"].requests <= 6


async def test_what_ollama_has(stub: StubOllama) -> None:
    async with open_pool(stub.base_url, PoolLimits(min_size=0)) as pool:
        models = OllamaModels(pool)
        assert await models.version() == "0.0.0-stub"
        assert [model.name for model in await models.available()] == ["llama3.2:latest", "nomic-embed-text:latest"]
        assert await models.find("LLAMA3.2") == (await models.available())[0]
        assert await models.find("phi4") is None
        assert await models.resident("llama3.2")
        assert not await models.resident("phi4")
        stub.behaviour(resident="loading")
        assert not await models.resident("llama3.2")
        stub.behaviour(resident="no")
        assert not await models.resident("llama3.2")
        assert pool.snapshot().requests == 0


@pytest.mark.parametrize("mode", ["hang", "close", "status", "refuse"])
async def test_an_ollama_that_does_not_answer_is_not_reachable(stub: StubOllama, mode: str) -> None:
    async with open_pool(stub.base_url, PoolLimits(min_size=1)) as pool:
        stub.behaviour(mode, path="/api/version")
        if mode == "refuse":
            await stub.refuse()
        async with asyncio.timeout(2):
            assert not await OllamaModels(pool, timeout=0.1).reachable()


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "ALL_PROXY"])
async def test_a_proxy_of_the_environment_does_not_lead_around_the_pool(
    stub: StubOllama, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    async with open_pool(stub.base_url, PoolLimits(min_size=1)) as pool:
        await answered(pool)
        assert pool.snapshot().connections_reused == 1


async def test_an_ollama_process_that_goes_and_comes_back_on_its_port() -> None:
    with stub_process() as stub:
        async with open_pool(stub.base_url, PoolLimits(min_size=2)) as pool:
            await answered(pool)
            await asyncio.to_thread(stub.behaviour, "refuse")
            with pytest.raises(UpstreamError) as caught:
                await answered(pool)
            assert caught.value.fault is UpstreamFault.CONNECT_FAILED
            await asyncio.to_thread(stub.behaviour, "ok")
            await answered(pool)
        assert stub.stats["requests"]["/api/chat"] == 2


async def _connections(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["connections_open"] == count)


async def _waiting(pool: OllamaPool, count: int) -> bool:
    return pool.snapshot().waiting == count
