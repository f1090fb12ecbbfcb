"""Shadow calls: sampled answers from the cache are generated again and labelled, behind all users."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.redis_store.keys import Keys
from tests.integration.test_documents import HOLIDAY, ONNX, add
from tests.integration.test_labels import ANOTHER, QUESTION, SAME, labelled, labels, metric, said
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
PARAPHRASE = "My password, how do I reset?"
ALL: dict[str, Any] = {"shadow_rate": 1.0, "shadow_per_minute": 1000}
OUTCOME = 'ragherd_cache_shadow_calls_total{outcome="%s"}'


async def called(outcome: str, count: int, *clients: httpx.AsyncClient) -> None:
    """Waits until the workers together have counted this many shadow calls."""

    async def counted() -> bool:
        return sum([await metric(client, OUTCOME % outcome) for client in clients]) >= count

    await wait_until_async(counted)


async def chats(stub: StubOllama) -> int:
    return int(stub.stats["requests"].get("/api/chat", 0))


@pytest.mark.parametrize(
    ("question", "kind", "similarity"), [(QUESTION, "exact", 1.0), (PARAPHRASE, "semantic", 1.0)], ids=["exact", "near"]
)
async def test_a_sampled_hit_is_answered_again_and_labelled_as_served(
    serve: Service, stub: StubOllama, redis: Redis, question: str, kind: str, similarity: float
) -> None:
    client = await serve(cache=ALL)
    await said(client, stub, QUESTION, "It takes 5 days.")
    stub.behaviour(answer="It takes 7 days.", path="/api/chat")
    answered = await ask(client, question)
    assert (answered["answer"], answered["cache"]["kind"]) == ("It takes 5 days.", kind)
    (label,) = await labelled(redis, 1)
    assert (label["source"], label["served"], label["verdict"], label["kind"]) == ("shadow", "1", "different", kind)
    assert label["probability"] == "1.0"
    assert float(label["similarity"]) == pytest.approx(similarity)
    await called("compared", 1, client)
    assert await metric(client, 'ragherd_cache_labels_total{source="shadow",verdict="different"}') == 1
    again = await ask(client, question)
    assert again["answer"] == "It takes 5 days.", "a shadow call stores nothing"
    assert await chats(stub) >= 2


async def test_an_expired_answer_that_is_served_is_sampled_as_stale(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache={**ALL, "stale_while_revalidate": 600.0})
    entry = await said(client, stub, QUESTION, SAME)
    created = await redis.hget(entry, "created_ms")
    await redis.hset(entry, "expires_ms", created or "")
    answered = await ask(client, PARAPHRASE)
    assert answered["cache"]["status"] == "stale"
    shadows = [label for label in await labelled(redis, 1) if label["source"] == "shadow"]
    await called("compared", 1, client)
    shadows = [label for label in await labels(redis) if label["source"] == "shadow"]
    assert [(label["kind"], label["verdict"], label["served"]) for label in shadows] == [("stale", "same", "1")]


async def test_a_shadow_call_counts_in_no_figure_of_users(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=ALL)
    await said(client, stub, QUESTION, SAME)

    async def figures() -> dict[str, Any]:
        names = ("queries", "cache_lookups", "cache_stores", "generation_tokens", "groundings", "query_stage")
        text = (await client.get("/metrics")).text
        exposed = [line for line in text.splitlines() if line.startswith(tuple(f"ragherd_{name}" for name in names))]
        report = (await client.get("/api/semantic-cache/metrics")).json()
        counts = {name: report[name] for name in ("exact_hits", "semantic_hits", "misses", "stores", "coalesced")}
        return {"exposed": exposed, **counts}

    stub.behaviour(answer=SAME, delay=0.3, path="/api/chat")
    await ask(client, QUESTION)
    before = await figures()
    await called("compared", 1, client)
    assert await figures() == before
    assert await chats(stub) == 2


async def test_at_rate_0_nothing_is_sampled(serve: Service, stub: StubOllama, redis: Redis) -> None:
    none, every = await serve(cache={"shadow_rate": 0.0}), await serve(cache=ALL)
    await said(none, stub, QUESTION, SAME)
    for _ in range(5):
        await ask(none, QUESTION)
    await ask(every, QUESTION)
    await labelled(redis, 1)
    assert await chats(stub) == 2
    assert len(await labels(redis)) == 1


async def test_no_shadow_call_is_made_while_the_breaker_is_open(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=ALL)
    await said(client, stub, QUESTION, SAME)
    assert (await client.post("/api/circuit-breaker/force-open")).status_code == 200
    assert (await ask(client, QUESTION))["cache"]["status"] == "hit"
    await called("breaker_open", 1, client)
    assert (await client.post("/api/circuit-breaker/reset")).status_code == 200
    await ask(client, QUESTION)
    await called("compared", 1, client)
    assert await chats(stub) == 2


async def test_no_shadow_call_is_made_while_users_wait(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=ALL, bulkhead={"max_concurrent": 1})
    await said(client, stub, QUESTION, SAME)
    stub.behaviour(answer=ANOTHER, delay=0.6, path="/api/chat")
    asking = [asyncio.create_task(ask(client, f"What of number {number}?")) for number in range(2)]

    async def waiting() -> bool:
        return bool((await client.get("/api/bulkhead/metrics")).json()["waiting"] > 0)

    await wait_until_async(waiting)
    assert (await ask(client, QUESTION))["cache"]["status"] == "hit"
    await called("users_waiting", 1, client)
    await asyncio.gather(*asking)
    assert await chats(stub) == 3
    assert not [label for label in await labels(redis) if label["source"] == "shadow"]


async def test_the_fleet_s_limit_per_minute_counts_all_workers(serve: Service, stub: StubOllama, redis: Redis) -> None:
    limit = {**ALL, "shadow_per_minute": 3}
    one, other = await serve(cache=limit), await serve(cache=limit)
    await said(one, stub, QUESTION, SAME)
    for number in range(8):
        await ask((one, other)[number % 2], QUESTION)
    await called("limited", 5, one, other)
    await called("compared", 3, one, other)
    assert len(await labels(redis)) == 3
    assert await chats(stub) == 4


async def test_a_failing_ollama_leaves_no_label(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=ALL)
    await said(client, stub, QUESTION, SAME)
    stub.behaviour("status", status=500)
    await ask(client, QUESTION)
    await called("failed", 1, client)
    stub.behaviour(answer=SAME, done_reason="length", path="/api/chat")
    await ask(client, QUESTION)
    await called("incomplete", 1, client)
    assert await labels(redis) == []


async def test_a_grounded_answer_is_compared_with_one_from_the_passages_of_now(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache=ALL, embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    stub.behaviour(answer="By the team lead [1].", path="/api/chat")
    await ask(client, "Who approves my holiday?")
    assert (await ask(client, "Who approves my holiday?"))["cache"]["kind"] == "exact"
    (label,) = await labelled(redis, 1)
    assert (label["source"], label["verdict"]) == ("shadow", "same")
    assert await chats(stub) == 2
    assert HOLIDAY in "".join(turn["content"] for turn in stub.last_bodies["/api/chat"]["messages"])


async def test_a_caller_who_forbids_generation_causes_none(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache=ALL)
    await said(client, stub, QUESTION, SAME)
    for _ in range(4):
        forbids = await ask(client, QUESTION, headers={"Cache-Control": "only-if-cached"})
        assert forbids["cache"]["kind"] == "exact"
    await ask(client, QUESTION)
    await called("compared", 1, client)
    assert len(await labels(redis)) == 1
    assert await chats(stub) == 2


async def test_a_grounded_follow_up_is_rewritten_behind_users_too(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve(cache=ALL, embedder=ONNX, retrieval={"retrieval_nothing_relevant": "answer"})
    await add(client, "Holiday policy", HOLIDAY)
    stub.behaviour(answer="By the team lead [1].", path="/api/chat")
    turns = [{"role": "user", "content": "May I take a holiday?"}, {"role": "assistant", "content": "Yes."}]
    await ask(client, "Who approves it?", history=turns)
    (rewritten,) = [key async for key in redis.scan_iter("rag:condensed:*")]
    assert await redis.unlink(rewritten), "as if it had expired"

    def waits(priority: str) -> str:
        return f'ragherd_bulkhead_wait_seconds_count{{name="ollama",priority="{priority}"}}'

    tokens = 'ragherd_generation_tokens_total{direction="completion"}'
    before = await metric(client, tokens)
    assert (await metric(client, waits("user")), await metric(client, waits("background"))) == (2, 0)
    assert (await ask(client, "Who approves it?", history=turns))["cache"]["kind"] == "exact"
    await called("compared", 1, client)
    assert (await metric(client, waits("user")), await metric(client, waits("background"))) == (2, 2)
    assert await metric(client, tokens) == before
