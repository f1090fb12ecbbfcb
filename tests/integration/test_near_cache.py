"""A worker's copies of exact entries: served without Redis, and never after the entry has changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.integration.test_feedback import vote
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

QUESTION = "What is the capital of France?"
CACHE = {"near_bytes": 1_000_000, "shadow_rate": 0.0}


async def asked(client: httpx.AsyncClient) -> httpx.Response:
    """Asks the question once."""
    return await client.post("/query", json={"question": QUESTION})


async def near_hit(client: httpx.AsyncClient) -> Any:
    """Asks until a copy answers."""
    async with asyncio.timeout(20):
        while "exact-near" not in (response := await asked(client)).headers["cache-status"]:
            pass
    return response.json()


async def test_a_copy_counts_as_an_exact_hit(serve: Service, redis: Redis) -> None:
    client = await serve(cache=CACHE)
    near = await near_hit(client)
    (flags,) = [one["flags"] for one in await redis.client_list() if "B" in one["flags"]]
    assert "P" in flags, "Redis limits the output of subscribers alone"
    assert (near["cache"]["status"], near["cache"]["kind"]) == ("hit", "exact")
    count = 1
    async with asyncio.timeout(20):
        while not re.search(r"ragherd_cache_near_hits_total [1-9]", text := (await client.get("/metrics")).text):
            await near_hit(client)
            count += 1
    assert "ragherd_cache_near_workers 1.0" in text
    assert re.search(r"ragherd_cache_near_bytes [1-9]", text)
    answers = re.search(r'ragherd_queries_total\{kind="exact",status="hit"\} (\d+)', text)
    assert answers is not None
    assert int(answers[1]) >= count
    assert await vote(client, near, "bad") == 202


Change = Callable[[httpx.AsyncClient, Any, Redis], Awaitable[object]]


async def by_tenant(client: httpx.AsyncClient, hit: Any, redis: Redis) -> None:
    assert (await client.delete("/api/semantic-cache", params={"tenant": "default"})).status_code == 200


async def by_vote(client: httpx.AsyncClient, hit: Any, redis: Redis) -> None:
    assert await vote(client, hit, "bad") == 202


async def by_document(client: httpx.AsyncClient, hit: Any, redis: Redis) -> None:
    text = "What is the capital of France? It is Paris."
    added = await client.post("/documents", json={"title": "France", "text": text}, params={"wait": "20"})
    assert added.status_code in (200, 201), added.text


async def by_flush(client: httpx.AsyncClient, hit: Any, redis: Redis) -> None:
    await redis.flushall()


async def by_eviction(client: httpx.AsyncClient, hit: Any, redis: Redis) -> None:
    entry, number = hit["cache"]["entry"], 0
    while await redis.exists(entry):
        for scores in ("rag:evict:cache", "rag:evict:cache:default"):
            await redis.zadd(scores, {entry: 0}, xx=True)  # its uses have raised its score, if they were written by now
        await ask(client, f"What is {number} times {number}?")
        number += 1


@pytest.mark.parametrize("change", [by_tenant, by_vote, by_document, by_flush, by_eviction])
async def test_a_change_of_the_entry_ends_its_copies(
    serve: Service, redis: Redis, stub: StubOllama, change: Change
) -> None:
    cache = {**CACHE, "max_size": 2} if change is by_eviction else CACHE
    one, other = await serve(cache=cache), await serve(cache=cache)
    stub.behaviour(answer="old")
    hit = await near_hit(one)
    stub.behaviour(answer="new")
    await change(other, hit, redis)
    async with asyncio.timeout(20):
        while (await asked(one)).json()["answer"] == "old":
            pass
        while (await near_hit(one))["answer"] == "old":
            pass


async def test_without_the_right_to_track_there_are_no_copies(
    serve: Service, redis: Redis, redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    await redis.acl_setuser(
        "plain", enabled=True, passwords=["+p"], keys=["*"], channels=["*"], commands=["+@all", "-client|tracking"]
    )
    client = await serve(cache=CACHE, redis={"url": redis_url.replace("://", "://plain:p@")})
    logged = ""
    async with asyncio.timeout(20):
        while "near_cache_off" not in logged:
            logged += "".join(capfd.readouterr())
            await asyncio.sleep(0.01)
    said = [(await asked(client)).headers["cache-status"] for _ in range(6)]
    assert not any("near" in one for one in said)
    assert "detail=exact" in said[-1]
    await redis.acl_deluser("plain")
