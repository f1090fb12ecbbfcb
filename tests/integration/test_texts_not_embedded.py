"""A text that the model cannot embed fails alone: it does not count against Ollama and stops no other text."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

MODEL = "nomic-embed-text"
NAN = {"status": 500, "message": "failed to encode response: json: unsupported value: NaN"}
REJECTED = {"status": 400, "message": "could not process the input"}
CRASHED = {"status": 500, "message": "the runner failed"}
WAYS = pytest.mark.parametrize("way", [NAN, REJECTED, CRASHED], ids=["nan", "400", "500"])


async def breaker(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/circuit-breaker/metrics")).json()["breakers"]["ollama-embed"]
    return found


@WAYS
@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_a_clients_text_is_its_own_fault(
    serve: Service, stub: StubOllama, way: dict[str, Any], path: str
) -> None:
    client = await serve(breaker={"failure_threshold": 2})
    stub.behaviour("bad_text", path="/api/embed", **way)
    for _ in range(4):
        refused = await client.post(path, json={"model": MODEL, "input": ["fine", "unembeddable"]})
        assert refused.status_code == 400
        assert way["message"] in refused.text
    found = await breaker(client)
    assert (found["state"], found["failure_count"]) == ("CLOSED", 0)
    assert (await client.post(path, json={"model": MODEL, "input": ["fine"]})).status_code == 200


@WAYS
async def test_a_question_that_cannot_be_embedded_is_a_semantic_miss(
    serve: Service, stub: StubOllama, way: dict[str, Any]
) -> None:
    client = await serve(breaker={"failure_threshold": 2})
    await ask(client, "How do I reset my password?")
    stub.behaviour("bad_text", path="/api/embed", **way)
    for number in range(4):
        assert (await ask(client, f"What is unembeddable {number}?"))["cache"]["status"] == "miss"
    found = await breaker(client)
    assert (found["state"], found["failure_count"]) == ("CLOSED", 0)
    assert (await ask(client, "My password, how do I reset?"))["cache"]["kind"] == "semantic"


async def test_where_no_text_is_embedded_it_is_the_backends_fault(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"failure_threshold": 2})
    stub.behaviour("bad_text", bad_text="", path="/api/embed", **CRASHED)
    for _ in range(2):
        failed = await client.post("/api/embed", json={"model": MODEL, "input": "anything"})
        assert failed.status_code == 502
    assert (await breaker(client))["state"] == "OPEN"
