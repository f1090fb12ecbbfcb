"""A slow Redis delays a question by at most its budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.stub_ollama import StubOllama
from tests.support.service import ask, make_settings, running_service
from tests.support.slow_proxy import SlowProxy, slow_proxy
from tests.support.waiting import wait_until_async

BUDGET = 0.25
SLACK = 50
"""Milliseconds that a loaded machine may add."""

pytestmark = pytest.mark.usefixtures("redis")


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[SlowProxy]:
    async with slow_proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: SlowProxy, stub: StubOllama) -> AsyncIterator[httpx.AsyncClient]:
    """A worker with some connections through the proxy, which is quick so far."""
    url = f"redis://127.0.0.1:{proxy.port}"
    settings = make_settings(url, stub.base_url, redis={"request_budget": BUDGET}, cache={"follow_ups": False})
    async with running_service(settings) as client:
        await asyncio.gather(*(ask(client, f"question {number}") for number in range(10)))
        yield client
        proxy.delay = 0.0


@pytest.mark.timed
async def test_the_whole_of_a_miss_keeps_to_one_budget(client: httpx.AsyncClient, proxy: SlowProxy) -> None:
    proxy.delay = 0.15
    for number in range(5):
        answered = await ask(client, f"a new one, {number}")
        assert answered["cache"]["status"] == "bypass"
        assert answered["timings_ms"]["cache"] <= BUDGET * 1000 + SLACK
    assert (await client.get("/api/semantic-cache/metrics")).json()["store"] == "shared"


@pytest.mark.timed
async def test_its_exact_hits_still_come(client: httpx.AsyncClient, proxy: SlowProxy) -> None:
    proxy.delay = 0.15
    for number in range(5):
        assert (await ask(client, f"question {number}"))["cache"]["kind"] == "exact"


@pytest.mark.timed
async def test_a_late_store_is_not_called_stored_and_still_gets_there(
    client: httpx.AsyncClient, proxy: SlowProxy
) -> None:
    proxy.delay = 0.15
    history = [{"role": "user", "content": "Hello"}]  # only the exact tier is looked up
    asked = {"question": "And then?", "history": history}
    response = await client.post("/query", json=asked)
    assert response.headers["Cache-Status"] == "ragherd; fwd=miss"
    assert response.json()["timings_ms"]["cache"] <= BUDGET * 1000 + SLACK

    async def hit() -> bool:
        return bool((await client.post("/query", json=asked)).json()["cache"]["status"] == "hit")

    proxy.delay = 0.0
    await wait_until_async(hit)
