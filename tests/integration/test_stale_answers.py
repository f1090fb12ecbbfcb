"""Expired answers: served while Ollama fails, or at once with a refresh if the setting allows it."""

from __future__ import annotations

from typing import Any

import httpx
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"
WINDOW = {"ttl": 0.05, "stale_while_revalidate": 600.0}


async def expired(redis: Redis, entry: str) -> None:
    """Waits until the entry has expired."""

    async def is_over() -> bool:
        seconds, micros = await redis.time()
        return seconds * 1000 + micros // 1000 > int(await redis.hget(entry, "expires_ms") or 0)

    await wait_until_async(is_over)


async def chats(stub: StubOllama, number: int) -> None:
    async def reached() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] == number)

    await wait_until_async(reached)


async def test_an_expired_answer_is_served_at_once_and_refreshed_once(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    one, other = await serve(cache=WINDOW), await serve(cache=WINDOW)
    first = await ask(one, QUESTION)
    await expired(redis, first["cache"]["entry"])
    stub.behaviour(delay=0.5, answer="a newer answer", path="/api/chat")
    for client in (one, other, one, other):
        response = await client.post("/query", json={"question": QUESTION})
        assert response.headers["Cache-Status"] == "ragherd; hit; detail=stale"
        assert int(response.headers["Age"]) >= 0
        assert (response.json()["answer"], response.json()["cache"]["status"]) == (first["answer"], "stale")
        assert response.json()["timings_ms"]["generate"] == 0

    async def refreshed() -> bool:  # asking would refresh once more, because the newer answer expires as soon
        return await redis.hget(first["cache"]["entry"], "answer") == b"a newer answer"

    await wait_until_async(refreshed)
    assert stub.stats["requests"]["/api/chat"] == 2
    assert (await ask(other, QUESTION))["answer"] == "a newer answer"


async def test_what_is_refreshed_is_found_by_its_meaning_as_before(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache={**WINDOW, "ttl": 600.0})
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    created, vector = await redis.hmget(entry, "created_ms", "vector")
    await redis.hset(entry, "expires_ms", created or "")
    assert (await ask(client, QUESTION))["cache"]["status"] == "stale"

    async def refreshed() -> bool:
        created, expires = await redis.hmget(entry, "created_ms", "expires_ms")
        return int(expires or 0) > int(created or 0)

    await wait_until_async(refreshed)
    assert await redis.hget(entry, "vector") == vector is not None


async def test_a_similar_question_too(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=WINDOW)
    first = await ask(client, QUESTION)
    await expired(redis, first["cache"]["entry"])
    found = await ask(client, PARAPHRASE)
    assert (found["cache"]["status"], found["cache"]["kind"]) == ("stale", "semantic")
    await chats(stub, 2)


async def test_a_refreshment_leaves_nothing_behind(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=WINDOW)
    first = await ask(client, QUESTION)
    await expired(redis, first["cache"]["entry"])
    await ask(client, QUESTION)
    await chats(stub, 2)

    async def gone() -> bool:
        return [key async for key in redis.scan_iter("rag:flight:*")] == []

    await wait_until_async(gone)


async def test_a_failing_refreshment_keeps_the_answer(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=WINDOW)
    first = await ask(client, QUESTION)
    await expired(redis, first["cache"]["entry"])
    stub.behaviour("status", status=500)
    assert (await ask(client, QUESTION))["cache"]["status"] == "stale"

    async def counted() -> bool:
        text = (await client.get("/metrics")).text
        return 'ragherd_cache_refreshes_total{outcome="failed"} 1.0' in text

    await wait_until_async(counted)
    assert (await ask(client, QUESTION))["cache"]["status"] == "stale"


async def test_who_allows_no_call_to_ollama_gets_no_answer_that_needs_one(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache=WINDOW)
    first = await ask(client, QUESTION)
    await expired(redis, first["cache"]["entry"])
    response = await _post(client, "only-if-cached")
    assert response.status_code == 504
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_without_the_setting_an_expired_answer_is_generated_anew(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache={"ttl": 0.05})
    first = await ask(client, QUESTION)
    await expired(redis, first["cache"]["entry"])
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    assert stub.stats["requests"]["/api/chat"] == 2


async def _post(client: httpx.AsyncClient, control: str) -> Any:
    return await client.post("/query", json={"question": QUESTION}, headers={"Cache-Control": control})
