"""Clients that disconnect at any moment of an answer: Ollama stops, and the answer is not counted."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.event_stream import connected
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "Why?"
BOTH_FORMS = pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])


async def left(client: httpx.AsyncClient, stub: StubOllama, *, stream: bool, path: str = "/api/chat") -> None:
    """Asks, and leaves once the stub is at it; returns when the stub has seen that."""
    asked, cancelled = stub.stats["requests"].get(path, 0), stub.stats["cancelled"]

    async def at_it() -> bool:
        return bool(stub.stats["requests"].get(path, 0) > asked and stub.stats["in_flight"] == 1)

    async def stopped() -> bool:
        return bool(stub.stats["cancelled"] > cancelled and stub.stats["in_flight"] == 0)

    async with connected(client, QUESTION, stream=stream) as reader:
        await wait_until_async(at_it)
        if stream and stub.mode == "hang_between":
            await reader.readuntil(b"event: token")
    await wait_until_async(stopped, timeout=2)


async def metrics_of(client: httpx.AsyncClient, what: str) -> dict[str, Any]:
    figures: dict[str, Any] = (await client.get(f"/api/{what}/metrics")).json()
    return figures


@BOTH_FORMS
@pytest.mark.parametrize("mode", ["hang", "hang_between"], ids=["before the first token", "between tokens"])
async def test_leaving_stops_the_generation_and_is_no_failure(
    serve: Service, stub: StubOllama, redis: Redis, mode: str, stream: bool
) -> None:
    client = await serve()
    stub.behaviour(mode, path="/api/chat")
    await left(client, stub, stream=stream)

    async def counted() -> bool:
        text = (await client.get("/metrics")).text
        return (
            'ragherd_http_request_duration_seconds_count{method="POST",route="/query",status="499"} 1.0' in text
            and 'ragherd_queries_total{kind="none",status="left"} 1.0' in text
            and 'ragherd_queries_total{kind="none",status="error"} 0.0' in text
        )

    await wait_until_async(counted)
    breaker = await metrics_of(client, "circuit-breaker")
    assert (breaker["ignored_calls"], breaker["failure_count"], breaker["success_count"]) == (1, 0, 0)
    assert await redis.keys("rag:cache:*") == []


@BOTH_FORMS
async def test_leaving_while_the_question_is_embedded(serve: Service, stub: StubOllama, stream: bool) -> None:
    client = await serve()
    stub.behaviour("hang", path="/api/embed")
    await left(client, stub, stream=stream, path="/api/embed")
    assert "/api/chat" not in stub.stats["requests"]
    breakers = (await metrics_of(client, "circuit-breaker"))["breakers"]
    assert (breakers["ollama-embed"]["ignored_calls"], breakers["ollama-embed"]["failure_count"]) == (1, 0)


@BOTH_FORMS
async def test_no_slot_of_the_pool_is_lost(serve: Service, stub: StubOllama, stream: bool) -> None:
    client = await serve(pool={"min_size": 1, "max_size": 1})
    for mode in ("hang", "hang_between") * 3:
        stub.behaviour(mode, path="/api/chat")
        await left(client, stub, stream=stream)
    stub.behaviour()
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    pool = await metrics_of(client, "connection-pool")
    assert (pool["active"], pool["waiting"]) == (0, 0)


@BOTH_FORMS
async def test_a_probe_whose_client_leaves_gives_its_permit_back(
    serve: Service, stub: StubOllama, stream: bool
) -> None:
    rules = {"failure_threshold": 1, "timeout": 0.2, "half_open_max_calls": 1}
    client = await serve(breaker=rules)
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await client.post("/query", json={"question": "other"})).status_code == 502

    async def probing() -> bool:
        return bool((await metrics_of(client, "circuit-breaker"))["retry_after_seconds"] == 0)

    await wait_until_async(probing)
    stub.behaviour("hang", path="/api/chat")
    await left(client, stub, stream=stream)
    stub.behaviour()

    async def returned() -> bool:
        return bool((await metrics_of(client, "circuit-breaker"))["probes_in_flight"] == 0)

    await wait_until_async(returned, timeout=5)  # half of what a lease lasts
    breaker = await metrics_of(client, "circuit-breaker")
    assert (breaker["state"], breaker["ignored_calls"], breaker["failure_count"]) == ("HALF_OPEN", 1, 1)
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    assert (await metrics_of(client, "circuit-breaker"))["state"] == "CLOSED"
