"""Reading a long prompt is not a hang, an abandoned prompt blocks nobody else's call, and a real hang is soon found."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubOllama, stub_process
from tests.support.gunicorn_process import free_port, gunicorns
from tests.support.service import Service, ask
from tests.support.waiting import wait_until, wait_until_async

FIRST_TOKEN = 0.8
PACE = 0.01
"""Seconds per word of a prompt."""
SLOW: dict[str, dict[str, Any]] = {
    "ollama": {"ollama_first_token_timeout": FIRST_TOKEN},
    "bulkhead": {"max_concurrent": 1, "max_wait": 20.0},
    "cache": {"enabled": False},
}
SHORT = "How are you doing on this day? " * 3
LONG = "word " * 300
"""Takes three seconds to read."""


async def breaker(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/circuit-breaker/metrics")).json()["breakers"]["ollama"]
    return found


async def in_use(client: httpx.AsyncClient) -> int:
    return int((await client.get("/api/bulkhead/metrics")).json()["in_use"])


async def reader(serve: Service, stub: StubOllama, **more: Any) -> httpx.AsyncClient:
    """A service whose backend has reported that it reads slowly."""
    stub.behaviour(read_pace=PACE, path="/api/chat")
    client = await serve(**{**SLOW, **more})
    await ask(client, SHORT, top_k=0)
    return client


@pytest.mark.timed
async def test_a_long_prompt_gets_the_time_to_be_read(serve: Service, stub: StubOllama) -> None:
    client = await reader(serve, stub, breaker={"slow_call_duration": 1.0, "minimum_calls": 1})
    began = time.monotonic()
    await ask(client, LONG, top_k=0)
    assert time.monotonic() - began > 3 * FIRST_TOKEN
    figures = await breaker(client)
    assert (figures["state"], figures["failure_count"], figures["slow_calls"]) == ("CLOSED", 0, 0)


@pytest.mark.parametrize("way", ["timeout", "left"])
async def test_a_caller_behind_an_abandoned_prompt_waits_for_a_permit_and_not_for_a_token(
    serve: Service, stub: StubOllama, way: str
) -> None:
    client = await reader(serve, stub)
    await abandon(client, way)
    await ask(client, SHORT, top_k=0)  # Ollama would give no token within its deadline
    figures = await breaker(client)
    assert (figures["state"], figures["failure_count"]) == ("CLOSED", 0)
    assert "ragherd_backend_hangs_total{" not in (await client.get("/metrics")).text
    await wait_until_async(lambda: is_free(client))


async def abandon(client: httpx.AsyncClient, way: str) -> None:
    """Gives up a call while its prompt is read."""
    body = {"question": LONG, "top_k": 0}
    if way == "timeout":
        response = await client.post("/query", json=body, headers={"X-Request-Timeout": "0.3"})
        assert response.status_code == 504
    else:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/query", json=body, timeout=0.3)
    assert await in_use(client) == 1


async def is_free(client: httpx.AsyncClient) -> bool:
    return await in_use(client) == 0


async def test_a_prompt_over_the_bound_is_refused_before_it_is_sent(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama={"ollama_max_prompt_tokens": 400}, cache={"enabled": False})
    refused = await client.post("/query", json={"question": LONG, "top_k": 0})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:ragherd:problem:prompt-too-long")
    assert refused.json()["limit"] == 400
    chat = {"model": "llama3.2", "messages": [{"role": "user", "content": LONG}]}
    imitated = await client.post("/api/chat", json=chat)
    assert (imitated.status_code, list(imitated.json())) == (400, ["error"])
    assert stub.stats["requests"].get("/api/chat", 0) == 0
    await ask(client, "Is this short?", top_k=0)


async def test_callers_who_wait_together_for_a_prompt_over_the_bound_get_the_same_error(serve: Service) -> None:
    workers = [await serve(ollama={"ollama_max_prompt_tokens": 400}) for _ in range(2)]
    asking = [worker.post("/query", json={"question": LONG, "top_k": 0}) for worker in workers * 2]
    assert [response.status_code for response in await asyncio.gather(*asking)] == [422] * 4


# -- A hang ------------------------------------------------------------------------------------------------------------


@pytest.mark.timed
async def test_one_call_to_a_backend_that_hangs_opens_the_breaker_within_two_deadlines(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(**SLOW)
    stub.behaviour("hang", path="/api/chat")
    began = time.monotonic()
    assert (await client.post("/query", json={"question": "Who?", "top_k": 0})).status_code == 504
    await wait_until_async(lambda: is_open(client))
    assert time.monotonic() - began <= 2 * FIRST_TOKEN + 0.5
    figures = await breaker(client)
    assert (figures["reason"], figures["store"]) == ("consecutive_failures", "shared")
    assert 'ragherd_backend_hangs_total{backend="ollama"} 1.0' in (await client.get("/metrics")).text
    await wait_until_async(lambda: is_free(client))


async def is_open(client: httpx.AsyncClient) -> bool:
    return bool((await breaker(client))["state"] == "OPEN")


async def test_a_backend_that_answers_again_in_time_does_not_open_the_breaker(serve: Service, stub: StubOllama) -> None:
    client = await serve(**SLOW)
    stub.behaviour("hang", path="/api/chat", times=1)
    assert (await client.post("/query", json={"question": "Who?", "top_k": 0})).status_code == 504
    await wait_until_async(lambda: is_free(client))
    figures = await breaker(client)
    assert (figures["state"], figures["failure_count"]) == ("CLOSED", 1)
    await ask(client, "Who?", top_k=0)


async def test_a_model_that_is_loading_is_not_a_hang(serve: Service, stub: StubOllama) -> None:
    client = await serve(**SLOW)
    stub.behaviour("hang", path="/api/chat")
    assert (await client.post("/query", json={"question": "Who?", "top_k": 0})).status_code == 504
    stub.behaviour("hang", resident="no", path="/api/chat")
    await wait_until_async(lambda: is_free(client))
    assert (await breaker(client))["failure_count"] == 1


@pytest.mark.processes
@pytest.mark.alone
def test_a_fleet_with_a_bulkhead_of_1_opens_its_breaker_within_two_deadlines(redis_url: str, tmp_path: Path) -> None:
    """Six callers on two workers: one hangs, the others wait in line."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with stub_process() as ollama, gunicorns("api.asgi:app", tmp_path) as begin:
        fleet = begin(
            REDIS_URL=redis_url,
            OLLAMA_BASE_URL=ollama.base_url,
            WORKERS="2",
            METRICS_PORT=free_port(),
            BULKHEAD_MAX_CONCURRENT="1",
            OLLAMA_FIRST_TOKEN_TIMEOUT="2",
            SEMANTIC_CACHE_ENABLED="false",
            REDIS_TIMEOUT="1",
            REDIS_REQUEST_BUDGET="2",
        )
        ollama.behaviour("hang", path="/api/chat")
        began = time.monotonic()
        statuses = asyncio.run(asked_together(fleet.url(), 6))
        wait_until(lambda: fleet.get("/api/circuit-breaker/metrics").json()["state"] == "OPEN", timeout=10)
        transitions = fleet.get("/api/circuit-breaker/history").json()["transitions"]
        with sync_redis.Redis.from_url(redis_url) as client:
            now = client.time()[0]
        assert [one["reason"] for one in transitions] == ["consecutive_failures"]
        opened_after = time.monotonic() - began - (now - transitions[0]["epoch"] / 1000)
        assert opened_after <= 2 * 2 + 1.5, f"{opened_after:.1f} s"
        assert min(statuses) == 503, "those in line are rejected as soon as the breaker is open"


async def asked_together(url: str, count: int) -> list[int]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        bodies = ({"question": f"Who is number {number}?", "top_k": 0} for number in range(count))
        asking = [client.post("/query", json=body) for body in bodies]
        return [response.status_code for response in await asyncio.gather(*asking)]
