"""Cached answers never outlive their documents, on any worker, even if a worker dies in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.knowledge.ingestion_worker import LOOKED_AT
from api.ports.document_store import DocumentFacts, Draft
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.document_records import RedisDocuments
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.replies import fields
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

HOLIDAY_QUESTION, CANTEEN_QUESTION = "Who approves my holiday?", "On which floor is the canteen?"
pytestmark = pytest.mark.once(reason="the invariants are of the Lua scripts")

KEYS = Keys()
BETTER = "Holiday of more than a month is approved by the office, not by the team lead."


@pytest.fixture
async def fleet(serve: Service) -> list[httpx.AsyncClient]:
    """Two workers, two documents, and an answer from each."""
    clients = [await serve(embedder=ONNX), await serve(embedder=ONNX)]
    await add(clients[0], "Holiday", HOLIDAY, source="holiday")
    await add(clients[0], "Canteen", CANTEEN, source="canteen")
    for question, source in ((HOLIDAY_QUESTION, "holiday"), (CANTEEN_QUESTION, "canteen")):
        answered = await ask(clients[1], question)
        assert [one["source"] for one in answered["sources"]] == [source]
    return clients


async def cached(client: httpx.AsyncClient, question: str, **more: Any) -> bool:
    only = {"Cache-Control": "only-if-cached"}
    response = await client.post("/query", json={"question": question, **more}, headers=only)
    return response.status_code == 200


async def test_an_entry_says_what_it_is_from(fleet: list[httpx.AsyncClient], redis: Redis) -> None:
    entry = (await ask(fleet[0], HOLIDAY_QUESTION))["cache"]["entry"]
    stored = fields(await redis.hgetall(entry))
    assert int(stored["epoch"]) == 2
    assert b'"revision":1' in stored["sources"]
    assert (stored["top_k"], stored["compared"]) == (b"4", b"meaning")


async def test_an_update_takes_its_answers_back_before_it_is_answered(fleet: list[httpx.AsyncClient]) -> None:
    one, other = fleet
    await add(one, "Holiday", "Holiday is approved by the office.", source="holiday")
    assert [await cached(client, HOLIDAY_QUESTION) for client in fleet] == [False, False]
    assert [await cached(client, CANTEEN_QUESTION) for client in fleet] == [True, True]
    answered = await ask(other, HOLIDAY_QUESTION)
    assert answered["sources"][0]["text"] == "Holiday is approved by the office."
    assert await cached(one, HOLIDAY_QUESTION)


async def test_a_deletion_takes_its_answers_back_before_it_is_answered(fleet: list[httpx.AsyncClient]) -> None:
    one, other = fleet
    document = (await ask(one, HOLIDAY_QUESTION))["sources"][0]["document_id"]
    assert (await one.delete(f"/documents/{document}")).status_code == 204
    assert [await cached(client, HOLIDAY_QUESTION) for client in fleet] == [False, False]
    assert await cached(other, CANTEEN_QUESTION)
    assert (await ask(other, HOLIDAY_QUESTION))["sources"] == []


async def test_a_new_document_makes_stale_what_it_would_be_cited_for_and_nothing_else(
    fleet: list[httpx.AsyncClient],
) -> None:
    one, other = fleet
    await ask(one, "Who is allowed to drive the van?")
    added = await add(one, "Long holiday", BETTER)
    answered = await ask(other, HOLIDAY_QUESTION)
    assert answered["cache"]["status"] == "miss"
    assert added["id"] in {source["document_id"] for source in answered["sources"]}
    assert await cached(other, CANTEEN_QUESTION)
    assert await cached(other, "Who is allowed to drive the van?")


async def test_all_or_none_may_be_made_stale_by_a_setting(serve: Service) -> None:
    for mode, left in (("all", False), ("none", True)):
        client = await serve(embedder=ONNX, retrieval={"cache_on_new_documents": mode})
        tenant = f"of-{mode}"
        await add(client, "Canteen", CANTEEN, tenant=tenant)
        await ask(client, CANTEEN_QUESTION, tenant=tenant)
        await add(client, "Holiday", HOLIDAY, tenant=tenant)
        assert await cached(client, CANTEEN_QUESTION, tenant=tenant) is left


async def test_answers_found_to_the_letter_alone_are_stale_with_any_new_document(
    fleet: list[httpx.AsyncClient],
) -> None:
    one, other = fleet
    history = [{"role": "user", "content": "Hello."}]
    await ask(one, HOLIDAY_QUESTION, history=history)
    assert await cached(other, HOLIDAY_QUESTION, history=history)
    await add(one, "Parking", "Cars are parked behind the house.")
    assert not await cached(other, HOLIDAY_QUESTION, history=history)


async def test_no_other_tenants_answers_are_touched(fleet: list[httpx.AsyncClient]) -> None:
    one, other = fleet
    await add(one, "Holiday", HOLIDAY, source="holiday", tenant="acme")
    await ask(one, HOLIDAY_QUESTION, tenant="acme")
    await add(one, "Holiday", BETTER, source="holiday", tenant="acme")
    await add(one, "More", BETTER + " So it is.", tenant="acme")
    assert await cached(other, HOLIDAY_QUESTION)


async def test_the_first_and_the_last_document_change_what_has_nothing_to_do_with_them(serve: Service) -> None:
    one, other = await serve(embedder=ONNX), await serve(embedder=ONNX)
    question, nothing = "What is the capital of France?", "I did not find anything"
    assert (await ask(one, question))["answer"] == f"echo: {question}"
    document = (await add(one, "Holiday", HOLIDAY))["id"]
    assert nothing in (await ask(other, question))["answer"]
    assert (await one.delete(f"/documents/{document}")).status_code == 204
    assert (await ask(other, question))["answer"] == f"echo: {question}"


async def test_a_deletion_whose_worker_died_is_carried_out_before_all_that_waits_to_be_embedded(
    fleet: list[httpx.AsyncClient], redis: BatchingRedis
) -> None:
    one, other = fleet
    document = (await ask(one, HOLIDAY_QUESTION))["sources"][0]["document_id"]
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    documents, facts = RedisDocuments(gate, KEYS), DocumentFacts("default", "Slides")
    for number in range(LOOKED_AT + 1):  # which none of these workers can read
        await documents.propose(Draft(f"{number:024x}", facts, str(number), b"bytes", "application/x-slides"), 100)
    assert await documents.delete(document, "default")  # and nobody tells the cache

    async def is_told() -> bool:
        return not await cached(other, HOLIDAY_QUESTION)

    await wait_until_async(is_told)
    assert await cached(other, CANTEEN_QUESTION)


@pytest.mark.parametrize("change", ["update", "delete", "add", "unrelated"])
async def test_what_changed_while_an_answer_was_generated_keeps_it_from_being_stored(
    fleet: list[httpx.AsyncClient], stub: StubOllama, change: str
) -> None:
    one, other = fleet
    question = "How long before must I ask for holiday?"
    stub.behaviour(delay=1.0, path="/api/chat")
    before = stub.stats["requests"]["/api/chat"]
    asking = asyncio.create_task(ask(one, question))

    async def generating() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] > before)

    await wait_until_async(generating)
    if change == "update":
        await add(other, "Holiday", "Ask for holiday a month before.", source="holiday")
    elif change == "delete":
        document = (await ask(other, HOLIDAY_QUESTION))["sources"][0]["document_id"]
        assert (await other.delete(f"/documents/{document}")).status_code == 204
    elif change == "add":
        await add(other, "More on holiday", "Ask for holiday of a month half a year before.")
    else:
        await add(other, "Parking", "Cars are parked behind the house.")
    answered = await asking
    assert (answered["cache"]["entry"] is not None) is (change == "unrelated")
    assert await cached(other, question) is (change == "unrelated")


@pytest.mark.parametrize("headers", [{}, {"Cache-Control": "no-cache"}])
async def test_what_redis_forgot_while_an_answer_was_generated_keeps_it_from_being_stored(
    serve: Service, stub: StubOllama, redis: Redis, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """FLUSHALL takes the documents, and with them all that is noted of their changes."""
    monkeypatch.setattr("api.single_flight.fleet_flights.RENEWAL_SECONDS", 0.05)
    client = await serve(embedder=ONNX)
    await add(client, "Holiday", HOLIDAY, source="holiday")
    await ask(client, "How long before must I ask for holiday?")
    stub.behaviour(delay=1.0, path="/api/chat")
    before = stub.stats["requests"]["/api/chat"]
    asking = asyncio.create_task(ask(client, HOLIDAY_QUESTION, headers=headers))

    async def generating() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] > before)

    await wait_until_async(generating)
    await redis.flushall()
    if not headers:
        await wait_until_async(lambda: redis.keys("rag:flight:*"))  # its leader takes the lead again
    answered = await asking
    assert [source["source"] for source in answered["sources"]] == ["holiday"]
    assert answered["cache"]["entry"] is None
    assert not await cached(client, HOLIDAY_QUESTION)
    await ask(client, HOLIDAY_QUESTION)
    assert await cached(client, HOLIDAY_QUESTION)


async def test_who_asks_after_a_change_does_not_join_a_generation_from_before(
    fleet: list[httpx.AsyncClient], stub: StubOllama
) -> None:
    one, other = fleet
    question = "How long before must I ask for holiday?"
    stub.behaviour(delay=1.0, path="/api/chat")
    before = stub.stats["requests"]["/api/chat"]
    asking = asyncio.create_task(ask(one, question))

    async def generating() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] > before)

    await wait_until_async(generating)
    await add(other, "Holiday", "Ask for holiday a month before.", source="holiday")
    later = await asyncio.gather(ask(one, question), ask(other, question))
    assert [one["sources"][0]["text"] for one in later] == ["Ask for holiday a month before."] * 2
    await asking


async def test_an_answer_made_stale_is_still_there_where_ollama_fails_and_a_deleted_one_is_not(
    fleet: list[httpx.AsyncClient], stub: StubOllama
) -> None:
    one, other = fleet
    document = (await ask(one, CANTEEN_QUESTION))["sources"][0]["document_id"]
    await add(one, "Long holiday", BETTER)
    assert (await one.delete(f"/documents/{document}")).status_code == 204
    stub.behaviour("status", path="/api/chat")
    stale = await ask(other, HOLIDAY_QUESTION)
    assert (stale["cache"]["status"], [source["source"] for source in stale["sources"]]) == ("stale", ["holiday"])
    assert (await ask(other, CANTEEN_QUESTION))["sources"] == []
