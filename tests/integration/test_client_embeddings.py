"""Embeddings for clients: limited, batched, behind questions, and within one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.stub_ollama import StubOllama, running_stub
from tests.stub_ollama.answers import vector
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

MODEL = "nomic-embed-text"
PATHS = ["/api/embed", "/v1/embeddings"]


@pytest.fixture
async def other() -> AsyncIterator[StubOllama]:
    async with running_stub() as ollama:
        yield ollama


def vectors(path: str, answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    if path == "/api/embed":
        found: list[list[float]] = document["embeddings"]
        return found
    assert [row["index"] for row in document["data"]] == list(range(len(document["data"])))
    return [row["embedding"] for row in document["data"]]


@pytest.mark.parametrize("path", PATHS)
async def test_more_inputs_than_allowed_are_refused_by_name(serve: Service, stub: StubOllama, path: str) -> None:
    client = await serve(embedder={"embed_max_inputs": 20})
    refused = await client.post(path, json={"model": MODEL, "input": ["a"] * 21})
    error = refused.json()["error"]
    assert refused.status_code == 400
    message = error if path == "/api/embed" else error["message"]
    assert message == "input: has 21 texts, but EMBED_MAX_INPUTS is 20"
    assert stub.stats["max_texts"] <= 1, "Ollama was not asked for them"
    assert len(vectors(path, await client.post(path, json={"model": MODEL, "input": ["a"] * 20}))) == 20


@pytest.mark.parametrize("path", PATHS)
async def test_many_inputs_are_embedded_in_batches_and_come_back_in_order(
    serve: Service, stub: StubOllama, path: str
) -> None:
    client = await serve()
    texts = [f"text {number}" for number in range(300)]
    found = vectors(path, await client.post(path, json={"model": MODEL, "input": texts}))
    assert found == [pytest.approx(vector(text, 16), abs=1e-6) for text in texts]
    assert 4 <= stub.stats["max_texts"] <= 32


@pytest.mark.parametrize("path", PATHS)
async def test_no_inputs_are_no_vectors(serve: Service, path: str) -> None:
    client = await serve()
    nothing = await client.post(path, json={"model": MODEL, "input": []})
    if path == "/api/embed":
        assert vectors(path, nothing) == []
    else:  # as Ollama
        assert (nothing.status_code, nothing.json()["error"]["message"]) == (400, "invalid input")


async def test_all_texts_of_a_request_are_embedded_by_one_backend(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": f"{stub.base_url},{other.base_url}"})
    body = {"model": MODEL, "input": [f"text {number}" for number in range(100)]}
    stub.behaviour(scale=2.0)
    other.behaviour(scale=3.0)
    for _ in range(2):
        found = vectors("/api/embed", await client.post("/api/embed", json=body))
        lengths = {round(sum(value * value for value in row) ** 0.5, 3) for row in found}
        assert len(lengths) == 1, "no vectors of different weights in one answer"


async def test_while_clients_embed_a_lot_a_question_gets_its_vector_in_time(serve: Service, stub: StubOllama) -> None:
    client = await serve(access={"api_keys": "bulk=key-of-bulk,asking=key-of-asking"})
    bulk, asking = {"Authorization": "Bearer key-of-bulk"}, {"Authorization": "Bearer key-of-asking"}
    await ask(client, "How do I reset my password?", headers=asking)
    stub.behaviour(embed_pace=0.1, path="/api/embed")
    body = {"model": MODEL, "input": ["a text"] * 100}
    calls = [asyncio.create_task(client.post("/api/embed", json=body, headers=bulk)) for _ in range(8)]

    async def they_hold_all_that_they_may() -> bool:
        return bool(stub.stats["in_flight"] == 6)

    await wait_until_async(they_hold_all_that_they_may)
    answered = await ask(client, "My password, how do I reset?", headers=asking)
    assert (answered["cache"]["status"], answered["cache"]["kind"]) == ("hit", "semantic")
    assert not any(call.done() for call in calls), "they were at it all the while"
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_clients_whose_calls_hang_leave_questions_a_permit(serve: Service, stub: StubOllama) -> None:
    client = await serve(access={"api_keys": "bulk=key-of-bulk,asking=key-of-asking"})
    bulk, asking = {"Authorization": "Bearer key-of-bulk"}, {"Authorization": "Bearer key-of-asking"}
    await ask(client, "How do I reset my password?", headers=asking)
    stub.behaviour("hang", path="/api/embed")
    calls = [
        asyncio.create_task(client.post("/api/embed", json={"model": MODEL, "input": "a"}, headers=bulk))
        for _ in range(8)
    ]

    async def two_wait_in_line() -> bool:
        found = (await client.get("/api/bulkhead/metrics")).json()["bulkheads"]["ollama-embed"]
        assert (found["limit"], found["reserved"]) == (8, 2)
        return bool(stub.stats["in_flight"] == found["in_use"] == 6 and found["waiting"] == 2)

    await wait_until_async(two_wait_in_line)
    stub.behaviour()
    assert (await ask(client, "My password, how do I reset?", headers=asking))["cache"]["kind"] == "semantic"
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_the_total_timeout_holds_over_all_attempts(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama={"ollama_total_timeout": 1.0})
    stub.behaviour("status", status=500, delay=0.7, path="/api/embed")
    late = await client.post("/api/embed", json={"model": MODEL, "input": "a"})
    assert late.status_code == 504, "the second attempt would have ended as 502, after 1.4 s"


async def test_nobody_waits_in_the_line_of_one_backend_after_that_of_another(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(
        ollama={"ollama_base_url": f"{stub.base_url},{other.base_url}"},
        bulkhead={"embed_max_concurrent": 1, "max_wait": 0.3},
    )
    for ollama in (stub, other):
        ollama.behaviour("hang", path="/api/embed")
    body = {"model": MODEL, "input": "a"}
    held = [asyncio.create_task(client.post("/api/embed", json=body)) for _ in range(2)]

    async def both_are_busy() -> bool:
        return bool(stub.stats["in_flight"] == other.stats["in_flight"] == 1)

    await wait_until_async(both_are_busy)
    refused = await client.post("/api/embed", json=body)
    assert (refused.status_code, "within the maximum wait" in refused.json()["error"]) == (503, True)
    assert await rejections(client, "deadline") == 1
    for call in held:
        call.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def rejections(client: httpx.AsyncClient, reason: str) -> int:
    found: dict[str, Any] = (await client.get("/api/bulkhead/metrics")).json()
    return sum(one["rejected"][reason] for one in found["bulkheads"].values())


async def test_the_options_of_an_embedding_are_sent_on(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama={"ollama_keep_alive": "1h"})
    given = {"truncate": False, "dimensions": 8, "options": {"num_ctx": 512, "seed": 1}}
    await client.post("/api/embed", json={"model": MODEL, "input": "a", "keep_alive": "1s", **given})
    sent = stub.last_bodies["/api/embed"]
    assert sent == {"model": MODEL, "input": ["a"], "keep_alive": "1h", **given}
    await client.post("/api/embeddings", json={"model": MODEL, "prompt": "a", "options": {"num_ctx": 512}})
    assert stub.last_bodies["/api/embed"]["options"] == {"num_ctx": 512}


async def test_an_embedding_of_nothing_unloads_the_model(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    answer = await client.post("/api/embed", json={"model": MODEL, "input": "", "keep_alive": 0})
    assert answer.json()["embeddings"] == []
    assert stub.last_bodies["/api/embed"]["keep_alive"] == 0
