"""SEMANTIC_CACHE_GROUNDED_CHECK: an answer from documents answers a similar question only if its passages do."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.knowledge.retrieval import PassageQuery, Retrieved, Retriever
from tests.integration.test_documents import ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.redis_monitor import searches_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

BASIC = "A Nomad Basic contract renews itself unless it is cancelled four weeks before its end."
PLUS = "A Nomad Plus contract renews itself unless it is cancelled nine weeks before its end."
ABOUT_BASIC = "by when do i have to cancel the nomad basic contract?"
ABOUT_PLUS = "by when do i have to cancel the nomad plus contract?"
BASIC_REWORDED = "by when must i cancel the nomad basic contract?"


async def served(serve: Service, stub: StubOllama, **cache: Any) -> httpx.AsyncClient:
    """A worker with both documents, and the cached answer about the first."""
    client = await serve(embedder=ONNX, cache=cache)
    await add(client, "Nomad Basic", BASIC, source="basic")
    await add(client, "Nomad Plus", PLUS, source="plus")
    stub.behaviour(answer="Four weeks before [1].", times=1, path="/api/chat")
    first = await ask(client, ABOUT_BASIC)
    assert first["sources"][0]["source"] == "basic"
    return client


def _of_passages(searches: list[str]) -> list[str]:
    """Leaves out those for cached answers: labels search for them in the background."""
    return [search for search in searches if "index:cache" not in search]


async def series(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def is_stored(client: httpx.AsyncClient, question: str) -> bool:
    return bool((await explained(client, question))["decision"] == "exact_hit")


async def explained(client: httpx.AsyncClient, question: str) -> Any:
    response = await client.post("/api/semantic-cache/explain", json={"question": question})
    return response.json()


async def test_a_question_about_another_document_is_answered_afresh(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub)
    other = await ask(client, ABOUT_PLUS)
    assert other["cache"]["status"] == "miss"
    assert other["sources"][0]["source"] == "plus"
    assert await series(client, 'ragherd_cache_guard_rejections_total{guard="grounding"}') == 1
    assert await series(client, 'ragherd_cache_grounded_checks_total{outcome="rejected"}') == 1


async def test_without_the_check_it_gets_the_wrong_answer(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub, grounded_check=False)
    other = await ask(client, ABOUT_PLUS)
    assert (other["cache"]["kind"], other["answer"]) == ("semantic", "Four weeks before [1].")


async def test_the_same_question_in_other_words_is_a_hit(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub)
    again = await ask(client, BASIC_REWORDED)
    assert (again["cache"]["kind"], again["answer"]) == ("semantic", "Four weeks before [1].")
    assert await series(client, 'ragherd_cache_grounded_checks_total{outcome="agreed"}') == 1


async def test_the_exact_question_is_not_checked(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub)
    assert (await ask(client, ABOUT_BASIC))["cache"]["kind"] == "exact"
    assert await series(client, "ragherd_cache_grounded_checks_total") == 0


async def test_a_later_candidate_that_passes_answers(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub)
    stub.behaviour(answer="Nine weeks before [1].", times=1, path="/api/chat")
    assert (await ask(client, ABOUT_PLUS))["cache"]["status"] == "miss"
    reworded = await ask(client, "by when must i cancel the nomad plus contract?")
    assert (reworded["cache"]["kind"], reworded["answer"]) == ("semantic", "Nine weeks before [1].")


async def test_the_generation_uses_the_passages_that_the_check_found(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await served(serve, stub)
    rejected = await searches_of(redis, lambda: ask(client, ABOUT_PLUS))
    other = await searches_of(redis, lambda: ask(client, "on which floor is the nomad office?"))
    assert len(_of_passages(rejected)) == len(_of_passages(other)) > 1, "it does not search again"
    assert await series(client, "ragherd_groundings_total") == 3


async def test_explain_shows_the_check(serve: Service, stub: StubOllama) -> None:
    client = await served(serve, stub)
    wrong, right = await explained(client, ABOUT_PLUS), await explained(client, BASIC_REWORDED)
    assert (wrong["decision"], right["decision"]) == ("miss", "semantic_hit")
    (candidate,) = wrong["candidates"]
    assert (candidate["verdict"], candidate["would_serve"]) == ("rejected", False)
    assert all(one["agrees"] for one in candidate["guards"])
    assert candidate["grounded"]["agrees"] is False
    assert candidate["grounded"]["detail"].startswith("better: ")
    assert right["candidates"][0]["grounded"] == {"agrees": True, "detail": ""}
    assert await series(client, "ragherd_cache_grounded_checks_total") == 0, "it counts nothing"


async def test_an_answer_without_passages_is_not_checked(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder=ONNX)
    await ask(client, "How do I enable two-factor login?")
    again = await ask(client, "How can I enable two-factor login?")
    assert again["cache"]["kind"] == "semantic"
    assert await series(client, "ragherd_groundings_total") == 1, "the first question's"


async def test_a_search_that_fails_is_a_miss(serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await served(serve, stub)

    async def unavailable(*_: object) -> None:
        raise StoreUnavailable("the search index is lost")

    monkeypatch.setattr(Retriever, "retrieve", unavailable)
    again = await ask(client, BASIC_REWORDED)
    assert (again["cache"]["status"], again["sources"]) == ("miss", [])
    assert await series(client, 'ragherd_cache_grounded_checks_total{outcome="unavailable"}') == 1


async def test_a_search_that_takes_too_long_is_a_miss_and_is_stored(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await served(serve, stub)
    search, first = Retriever.retrieve, asyncio.Event()

    async def late(retriever: Retriever, wanted: PassageQuery) -> Retrieved:
        if not first.is_set():
            first.set()
            await asyncio.Event().wait()
        return await search(retriever, wanted)

    monkeypatch.setattr(Retriever, "retrieve", late)
    again = await ask(client, BASIC_REWORDED)
    assert (again["cache"]["status"], again["sources"][0]["source"]) == ("miss", "basic")
    assert await series(client, 'ragherd_cache_grounded_checks_total{outcome="unavailable"}') == 1
    # Storing continues after the answer, because the search has used up the request's time for the cache.
    await wait_until_async(lambda: is_stored(client, BASIC_REWORDED))
