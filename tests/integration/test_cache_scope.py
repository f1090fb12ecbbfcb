"""Two requests that may have different correct answers never share one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "Who approves my holiday request?"


@pytest.mark.parametrize(
    "difference",
    [
        {"tenant": "other"},
        {"model": "nomic-embed-text"},
        {"options": {"temperature": 0.1}},
        {"options": {"seed": 1}},
        {"top_k": 0},
        {"history": [{"role": "user", "content": "I work in Spain."}]},
    ],
    ids=lambda difference: next(iter(difference)),
)
async def test_what_an_answer_depends_on_parts_the_scopes(serve: Service, difference: dict[str, Any]) -> None:
    client = await serve()
    await ask(client, QUESTION)
    assert (await ask(client, QUESTION, **difference))["cache"]["status"] == "miss"
    assert (await ask(client, QUESTION, **difference))["cache"]["status"] == "hit"
    assert (await ask(client, QUESTION))["cache"]["status"] == "hit"


async def test_no_answer_crosses_tenants(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    for tenant in "abcd":
        stub.behaviour(answer=f"only for {tenant}")
        await ask(client, QUESTION, tenant=tenant)
    stub.behaviour(answer="nobody's")
    for tenant in "abcd":
        for question in (QUESTION, "my holiday request approves who"):
            assert (await ask(client, question, tenant=tenant))["answer"] == f"only for {tenant}"


async def test_another_embedding_model_of_the_same_dimension_never_meets_the_first_ones_vectors(
    serve: Service, stub: StubOllama
) -> None:
    await ask(await serve(), QUESTION)
    stub.behaviour(digest="sha256:0ther")
    changed = await serve(redis={"prefix": "rag:"})
    assert (await ask(changed, QUESTION))["cache"]["status"] == "miss"

    async def is_found_by_meaning() -> bool:  # soon: Redis builds the other model's index
        body = {"question": "My holiday request: who approves?"}
        found = await changed.post("/query", json=body, headers={"Cache-Control": "only-if-cached"})
        return found.status_code == 200 and found.json()["cache"]["kind"] == "semantic"

    await wait_until_async(is_found_by_meaning)


async def test_a_caller_can_not_lower_the_threshold(serve: Service) -> None:
    client = await serve()
    response = await client.post("/query", json={"question": QUESTION, "similarity_threshold": 0.1})
    assert response.status_code == 422


async def test_long_questions_are_compared_to_the_letter_only(serve: Service) -> None:
    client = await serve()
    material = "The report says that all is well. " * 20
    await ask(client, f"{material} Summarise it in one line.")
    other = await ask(client, f"{material} Translate it into French.")
    assert other["cache"]["status"] == "miss"
    assert (await ask(client, f"{material} Summarise it in one line"))["cache"]["kind"] == "exact"


async def test_a_far_question_is_a_miss(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    assert (await ask(client, "Where is the canteen?"))["cache"]["status"] == "miss"


async def test_cache_control_is_obeyed(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    only_if_cached = {"Cache-Control": "only-if-cached"}
    absent = await client.post("/query", json={"question": QUESTION}, headers=only_if_cached)
    assert absent.status_code == 504
    private = await ask(client, QUESTION, headers={"Cache-Control": "no-store"})
    assert private["cache"] == {
        "status": "bypass",
        "kind": None,
        "similarity": None,
        "age_seconds": None,
        "entry": None,
    }
    await ask(client, QUESTION)
    stub.behaviour(answer="a new answer")
    afresh = await client.post("/query", json={"question": QUESTION}, headers={"Cache-Control": "no-cache"})
    assert afresh.json()["answer"] == "a new answer"
    assert afresh.headers["Cache-Status"] == "ragherd; fwd=request; stored"
    assert (await ask(client, QUESTION, headers=only_if_cached))["answer"] == "a new answer"
    figures = (await client.get("/api/semantic-cache/metrics")).json()
    assert (figures["hits"], figures["misses"]) == (1, 2)  # only-if-cached, and the first plain one


async def test_cache_control_on_several_lines_is_one(serve: Service) -> None:
    client = await serve()
    lines = [("Cache-Control", "max-age=60"), ("Cache-Control", "no-store")]
    private = await client.post("/query", json={"question": QUESTION}, headers=lines)
    assert private.headers["Cache-Status"] == "ragherd; fwd=request"


async def test_max_age_is_obeyed(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    assert (await ask(client, QUESTION, headers={"Cache-Control": "max-age=60"}))["cache"]["status"] == "hit"
    assert (await ask(client, QUESTION, headers={"Cache-Control": "max-age=0"}))["cache"]["status"] == "miss"


@pytest.mark.parametrize("mode", ["cut", "error_line", "no_done"])
async def test_incomplete_answers_are_never_stored(serve: Service, stub: StubOllama, mode: str) -> None:
    client = await serve()
    stub.behaviour(mode, path="/api/chat")
    assert (await client.post("/query", json={"question": QUESTION})).status_code == 502
    stub.behaviour()
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"


async def test_an_empty_answer_is_never_stored(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(answer=" ")
    assert (await client.post("/query", json={"question": QUESTION})).headers["Cache-Status"] == "ragherd; fwd=miss"


async def test_a_hit_never_extends_the_lifetime(serve: Service, redis: Any) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    before = await redis.hget(entry, "expires_ms"), await redis.pexpiretime(entry)
    await ask(client, QUESTION)
    assert (await redis.hget(entry, "expires_ms"), await redis.pexpiretime(entry)) == before


async def test_the_bound_on_entries_holds_and_the_least_recently_used_goes(serve: Service, redis: Any) -> None:
    client = await serve(cache={"max_size": 3})
    for number in range(5):
        await ask(client, f"entirely different question {number}{'abcdefgh' * number}")
    figures = (await client.get("/api/semantic-cache/metrics")).json()
    assert (figures["cache_size"], figures["evictions"]) == (3, 2)


async def test_expired_answers_are_served_labelled_while_ollama_fails(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"ttl": 0.05})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/chat")
    while (stale := await client.post("/query", json={"question": QUESTION})).json()["cache"]["status"] == "hit":
        pass
    assert stale.json()["cache"]["status"] == "stale"
    assert stale.headers["Cache-Status"] == "ragherd; hit; detail=stale"
    too_old = await client.post("/query", json={"question": QUESTION}, headers={"Cache-Control": "max-age=0"})
    assert too_old.status_code == 502
    similar = await ask(client, "my holiday request who approves")
    assert (similar["cache"]["status"], similar["cache"]["kind"]) == ("stale", "semantic")
    stub.behaviour()
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"


async def test_newer_weights_of_the_model_have_answers_of_their_own(serve: Service, stub: StubOllama) -> None:
    """The embedder is the worker's own: only the language model is another after `ollama pull`."""
    settings: dict[str, Any] = {"embedder": {"embedder": "onnx"}, "ollama": {"ollama_probe_interval": 0.05}}
    client = await serve(**settings)
    old = await ask(client, QUESTION)
    stub.behaviour(digest="sha256:pulled", answer="by the newer weights")

    async def is_new() -> bool:
        return bool((await ask(client, QUESTION))["answer"] == "by the newer weights")

    await wait_until_async(is_new)
    stub.behaviour()

    async def is_old() -> bool:
        return bool((await ask(client, QUESTION))["cache"]["entry"] == old["cache"]["entry"])

    await wait_until_async(is_old)


async def test_a_worker_that_starts_without_ollama_finds_what_is_cached(serve: Service, stub: StubOllama) -> None:
    onnx = {"embedder": {"embedder": "onnx"}}
    first = await ask(await serve(**onnx), QUESTION)
    await stub.refuse()
    late = await serve(**onnx)
    found = await ask(late, QUESTION)
    assert (found["cache"]["status"], found["cache"]["entry"]) == ("hit", first["cache"]["entry"])


async def test_a_name_of_a_model_is_the_model(serve: Service) -> None:
    client = await serve()
    first = await ask(client, QUESTION, model="llama3.2")
    assert (await ask(client, QUESTION, model="llama3.2:latest"))["cache"]["entry"] == first["cache"]["entry"]
