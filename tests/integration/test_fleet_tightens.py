"""The fleet tightens after a sudden fault, on every worker. Shadow calls find it: the stub knows the truth."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.redis_store.keys import Keys
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
QUESTION, SIMILAR = "How do I reset my password?", "How do I reset my old password?"  # cosine .866
SAME, ANOTHER = "It takes 5 days.", "It takes 7 days."
CACHE = {"similarity_threshold": 0.86, "shadow_rate": 1.0, "shadow_per_minute": 100_000}


async def quality(client: httpx.AsyncClient, **headers: str) -> Any:
    return (await client.get("/api/semantic-cache/quality", headers=headers)).json()


async def equal_questions(client: httpx.AsyncClient, redis: Redis, count: int, **headers: str) -> None:
    """Asks the same question again and again: the labels show how rarely the comparator calls equal answers different.

    Ten at once, since a worker's queue of shadow calls is short.
    """

    async def are_labelled(number: int) -> bool:
        return bool(await redis.xlen(KEYS.labels) >= number)

    for number in range(10, count + 1, 10):
        await asyncio.gather(*(ask(client, QUESTION, headers=headers) for _ in range(10)))
        await wait_until_async(partial(are_labelled, number))


async def hit(client: httpx.AsyncClient, redis: Redis, stub: StubOllama, fresh: str, **headers: str) -> bool:
    """Asks a similar question. If the cache answers, waits until a fresh answer was compared with it."""
    before = await redis.xlen(KEYS.labels)
    stub.behaviour(answer=fresh, path="/api/chat")
    answered = await ask(client, SIMILAR, headers=headers)
    if answered["cache"]["status"] != "hit":
        return False

    async def is_labelled() -> bool:
        return bool(await redis.xlen(KEYS.labels) > before)

    await wait_until_async(is_labelled)
    return True


@pytest.mark.once(reason="1,000 questions, to measure; the other tests here take the same way")
async def test_both_workers_tighten_within_500_hits_of_a_fault(serve: Service, redis: Redis, stub: StubOllama) -> None:
    workers = [await serve(cache=CACHE), await serve(cache=CACHE)]
    stub.behaviour(answer=SAME, path="/api/chat")
    await ask(workers[0], QUESTION)
    await equal_questions(workers[1], redis, 200)
    for number in range(40):
        assert await hit(workers[number % 2], redis, stub, SAME)
    assert [(await quality(one))["level"] for one in workers] == [0, 0]

    hits = 0
    while hits < 500 and not (await quality(workers[0]))["tightened"]:
        hits += 1  # from now on every tenth cached answer is wrong
        if not await hit(workers[hits % 2], redis, stub, ANOTHER if hits % 10 == 0 else SAME):
            break
    assert hits < 500

    async def all_have_tightened() -> bool:
        return all([(await quality(one))["level"] == 1 for one in workers])

    await wait_until_async(all_have_tightened)
    stub.behaviour(answer=SAME, path="/api/chat")
    for client in workers:
        shown = await quality(client)
        assert shown["threshold"] == 0.895
        assert [event["change"] for event in shown["history"]] == ["tightened"]
    changes = 0.0
    for client in workers:
        lines = (await client.get("/metrics")).text.splitlines()
        name = 'ragherd_cache_quality_changes_total{change="tightened"}'
        changes += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
    assert changes == 1, "one worker reports it"


async def test_one_tenants_wrong_hits_tighten_no_other_tenant(serve: Service, redis: Redis, stub: StubOllama) -> None:
    access = {"api_keys": "faulty=key-1,fine=key-2", "admin_keys": "root"}
    workers = [await serve(cache=CACHE, access=access), await serve(cache=CACHE, access=access)]
    faulty, fine = {"Authorization": "Bearer key-1"}, {"Authorization": "Bearer key-2"}
    stub.behaviour(answer=SAME, path="/api/chat")
    for tenant in (faulty, fine):
        await ask(workers[0], QUESTION, headers=tenant)
        await equal_questions(workers[1], redis, 100, **tenant)
    asked = 0
    while asked < 500 and await hit(workers[asked % 2], redis, stub, ANOTHER if asked % 6 == 5 else SAME, **faulty):
        assert await hit(workers[asked % 2], redis, stub, SAME, **fine)
        asked += 1
    assert asked < 500

    async def all_have_tightened() -> bool:
        shown = [await quality(one, Authorization="Bearer root") for one in workers]
        return all(one.get("tightened_tenants") == {"faulty": 1} for one in shown)

    await wait_until_async(all_have_tightened)
    for client in workers:
        assert await hit(client, redis, stub, SAME, **fine)
        shown = await quality(client, Authorization="Bearer root")
        assert (shown["level"], shown["history"][0]["tenant"]) == (0, "faulty")
