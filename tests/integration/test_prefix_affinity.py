"""Several backends with prefix caches: conversations stay where they were read, and the load still wins."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.prefixes import RedisPrefixStore
from tests.stub_ollama import StubOllama, running_stub
from tests.support.redis_cluster import Cluster
from tests.support.service import Service
from tests.support.waiting import wait_until_async

SYSTEM = " ".join(f"rule{number}" for number in range(150))
CONVERSATIONS, TURNS = 7, 5


@pytest.fixture
async def three(stub: StubOllama) -> AsyncIterator[list[StubOllama]]:
    async with AsyncExitStack() as stack:
        yield [stub, *[await stack.enter_async_context(running_stub()) for _ in range(2)]]


def urls(stubs: list[StubOllama]) -> dict[str, Any]:
    return {"ollama_base_url": ",".join(one.base_url for one in stubs)}


def evaluated(stubs: list[StubOllama]) -> int:
    return sum(one.prompts.evaluated for one in stubs)


def words_of(seed: str, count: int) -> str:
    return " ".join(hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:6] for number in range(count))


async def turn(client: httpx.AsyncClient, messages: list[dict[str, str]], said: str, **more: Any) -> None:
    """Adds a question and its answer to a conversation."""
    messages.append({"role": "user", "content": said})
    body = {"model": "llama3.2", "messages": messages, "stream": False, **more}
    answer = await client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    messages.append(answer.json()["message"])


def conversation(name: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"{SYSTEM} {name}"}]


async def traffic(client: httpx.AsyncClient, name: str, turns: int = TURNS, **more: Any) -> None:
    """Users take turns, so that each conversation's next turn falls to another backend if they take turns as well."""
    conversations = [conversation(f"{name}{number}") for number in range(CONVERSATIONS)]
    for number in range(turns):
        for messages in conversations:
            await turn(client, messages, words_of(f"{name} {number}", 40), **more)


def counted(text: str) -> dict[str, float]:
    return {
        f"{name} {label}": float(value)
        for name, label, value in re.findall(r'^ragherd_prefix_(\w+)_total\{\w+="(\w+)"\} (\S+)$', text, re.MULTILINE)
    }


@pytest.mark.parametrize("options", [{}, {"logprobs": True}], ids=["understood", "forwarded"])
async def test_conversations_are_read_again_at_most_half_as_much_as_by_load_alone(
    serve: Service, three: list[StubOllama], options: dict[str, Any]
) -> None:
    by_load = await serve(ollama=urls(three) | {"ollama_prefix_affinity": 0})
    await traffic(by_load, "load", **options)
    before = evaluated(three)
    by_prefix = await serve(ollama=urls(three))
    await traffic(by_prefix, "prefix", **options)
    assert evaluated(three) - before <= before / 2
    assert all(one.stats["requests"]["/api/chat"] > 4 for one in three), "and all of them work"
    found = counted((await by_prefix.get("/metrics")).text)
    assert found["choices prefix"] >= CONVERSATIONS * (TURNS - 2)
    assert found["bytes matched"] > found["bytes new"]


async def test_workers_share_what_they_know(serve: Service, three: list[StubOllama]) -> None:
    workers = [await serve(ollama=urls(three)) for _ in range(2)]
    for number, worker in enumerate(workers):  # each takes the fleet's key with its first prompt
        await turn(worker, conversation(f"first{number}"), "one")
    messages = conversation("shared")
    before = evaluated(three)
    for number in range(TURNS):
        await turn(workers[number % 2], messages, words_of(f"shared {number}", 40))
    assert evaluated(three) - before <= sum(len(message["content"].split()) + 1 for message in messages)


async def test_redis_has_no_text_of_a_prompt_and_few_prompts(
    serve: Service, three: list[StubOllama], redis: Redis
) -> None:
    client = await serve(ollama=urls(three) | {"ollama_prefix_prompts": 2})
    await traffic(client, "x", turns=2)
    hashes = [f"rag:prefix:{name}".encode() for name in ("ollama", "ollama-2", "ollama-3")]
    assert sorted([key async for key in redis.scan_iter("rag:prefix*")]) == [b"rag:prefix", *hashes]
    for key in hashes:
        assert 3000 < await redis.ttl(key) <= 3600
        remembered: dict[Any, Any] = await redis.hgetall(key)
        assert 1 <= len(remembered) <= 2
        for field, value in remembered.items():
            assert re.fullmatch(rb"llama3.2:latest [0-9a-f]{16}", field)
            assert re.fullmatch(rb"\d{13} \d+ [0-9a-f]+", value)
    found = (await client.get("/api/backends")).json()["backends"]
    assert all(1 <= one["remembered_prompts"] <= 2 for one in found)


async def test_a_fleet_with_room_for_fewer_prompts_forgets_the_oldest(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 1.0, 1.0, 4)) as client:
        gate = HealthGatedRedis(client, 4)
        await gate.check()
        chains = [f"{number:016x}" for number in range(6)]
        for room, chain in zip((4, 4, 4, 4, 4, 2), chains, strict=True):
            store = RedisPrefixStore(gate, gate, Keys(), ["ollama"], room)
            await store.record("ollama", "m", chain, 1, key="k", alone=False)
        assert sorted(await redis.hkeys("rag:prefix:ollama")) == [f"m {chain}".encode() for chain in chains[-2:]]


async def test_a_busy_backend_gives_its_conversation_away(serve: Service, three: list[StubOllama]) -> None:
    client = await serve(ollama=urls(three), bulkhead={"max_concurrent": 2})
    messages = conversation("busy")
    await turn(client, messages, "one")
    (home,) = [one for one in three if one.stats["requests"].get("/api/chat")]
    for one in three:
        one.behaviour(delay=1.0)
    await asyncio.gather(*(turn(client, list(messages), f"again {number}") for number in range(6)))
    assert home.stats["requests"]["/api/chat"] == 3
    assert sorted(one.stats["requests"]["/api/chat"] for one in three) == [2, 2, 3]


async def test_a_model_that_left_memory_and_a_drained_backend_know_nothing(
    serve: Service, three: list[StubOllama], redis: Redis
) -> None:
    client = await serve(ollama=urls(three) | {"ollama_probe_interval": 0.1})
    await traffic(client, "x", turns=2)
    assert await redis.exists("rag:prefix:ollama", "rag:prefix:ollama-2", "rag:prefix:ollama-3") == 3

    three[0].behaviour(resident="no")
    await wait_until_async(lambda: _none(redis, "rag:prefix:ollama"))
    assert await redis.exists("rag:prefix:ollama-2", "rag:prefix:ollama-3") == 2
    assert (await client.post("/api/backends/ollama-2/drain")).status_code == 200
    await wait_until_async(lambda: _none(redis, "rag:prefix:ollama-2"))
    assert await redis.exists("rag:prefix:ollama-3") == 1


async def test_an_answer_that_loaded_the_model_replaces_what_was_known(
    serve: Service, three: list[StubOllama], redis: Redis
) -> None:
    client = await serve(ollama=urls(three[:2]))
    await traffic(client, "x", turns=2)
    before = {key: await redis.hlen(key) for key in ("rag:prefix:ollama", "rag:prefix:ollama-2")}
    assert min(before.values()) >= 2
    three[0].behaviour(load_duration=3.0)
    three[1].behaviour(load_duration=3.0)
    await turn(client, conversation("after"), "one")

    async def one_alone() -> bool:
        return 1 in {await redis.hlen(key) for key in before}

    await wait_until_async(one_alone)


async def test_on_a_cluster_the_calls_are_counted_as_well(
    cluster_serve: Service, cluster: Cluster, three: list[StubOllama]
) -> None:
    client = await cluster_serve(ollama=urls(three))
    await traffic(client, "x", turns=3)
    found = counted((await client.get("/metrics")).text)
    assert found["choices prefix"] >= CONVERSATIONS
    assert "choices unavailable" not in found
    remembered = (await client.get("/api/backends")).json()["backends"]
    assert all(one["remembered_prompts"] for one in remembered)


async def _none(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def test_one_backend_asks_redis_nothing(serve: Service, redis: Redis) -> None:
    client = await serve()
    await turn(client, conversation("alone"), "one")
    assert [key async for key in redis.scan_iter("rag:prefix*")] == []
    assert (await client.get("/api/backends")).json()["backends"][0]["remembered_prompts"] is None
    assert counted((await client.get("/metrics")).text) == {}
