"""The latency of a tenant's questions reveals nothing about other tenants: each pays for its own embeddings."""

from __future__ import annotations

import httpx

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

QUESTIONS = [f"How do I reset the password of account number {number}?" for number in range(25)]
NO_CACHE = {"Cache-Control": "no-cache"}
"""The answer comes from the language model: only the embedding could be remembered."""


async def embeddings(client: httpx.AsyncClient, stub: StubOllama, tenant: str) -> list[int]:
    """The calls of /api/embed that each question causes."""
    caused = []
    for question in QUESTIONS:
        before = stub.stats["requests"].get("/api/embed", 0)
        await ask(client, question, tenant=tenant, headers=NO_CACHE)
        caused.append(stub.stats["requests"].get("/api/embed", 0) - before)
    return caused


async def test_another_tenants_questions_are_embedded_again(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await ask(client, "Who are you?", tenant="a")  # the identity of the model takes a call too
    assert await embeddings(client, stub, "a") == [1] * 25
    assert await embeddings(client, stub, "a") == [0] * 25, "its own are remembered"
    assert await embeddings(client, stub, "b") == [1] * 25


async def test_explain_and_warm_up_tell_nothing_of_another_tenant(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    question = QUESTIONS[0]
    await ask(client, question, tenant="a")
    before = stub.stats["requests"]["/api/embed"]
    await client.post("/api/semantic-cache/explain", json={"question": question, "tenant": "b"})
    assert stub.stats["requests"]["/api/embed"] == before + 1
    await client.post("/api/semantic-cache/explain", json={"question": question, "tenant": "a"})
    assert stub.stats["requests"]["/api/embed"] == before + 1
