"""The imitated APIs when backends fail and clients disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service
from tests.support.waiting import wait_until_async

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "Why?"}]}
EMBED = {"model": "nomic-embed-text", "input": "Why?"}


@pytest.fixture
async def other() -> AsyncIterator[StubOllama]:
    async with running_stub() as ollama:
        yield ollama


async def two_backends(serve: Service, stub: StubOllama, other: StubOllama) -> httpx.AsyncClient:
    return await serve(ollama={"ollama_base_url": f"{stub.base_url},{other.base_url}"})


async def test_embeddings_and_descriptions_come_from_the_backend_that_is_up(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    service = await two_backends(serve, stub, other)
    await stub.refuse()
    for _ in range(2):  # whichever has the first turn
        assert (await service.post("/api/embed", json=EMBED)).status_code == 200
        assert (await service.post("/v1/embeddings", json=EMBED)).status_code == 200
    assert (await service.post("/api/show", json={"model": "llama3.2"})).status_code == 200
    assert (await service.get("/api/version")).status_code == 200
    assert len((await service.get("/v1/models")).json()["data"]) == 2
    assert other.stats["requests"]["/api/embed"] >= 4


async def test_a_model_that_one_backend_has_is_found_there(serve: Service, stub: StubOllama, other: StubOllama) -> None:
    service = await two_backends(serve, stub, other)
    stub.behaviour(models=["llama3.2:latest"])
    other.behaviour(models=["nomic-embed-text:latest", "llama3.2:latest"])
    for _ in range(2):
        assert (await service.post("/api/embed", json=EMBED)).status_code == 200
    assert (await service.post("/api/show", json={"model": "nomic-embed-text"})).status_code == 200
    names = [row["name"] for row in (await service.get("/api/tags")).json()["models"]]
    assert names == ["llama3.2:latest", "nomic-embed-text:latest"]
    absent = await service.post("/api/embed", json={**EMBED, "model": "nowhere"})
    assert (absent.status_code, list(absent.json())) == (404, ["error"])


async def test_embeddings_come_from_ollama_also_where_the_service_embeds_by_itself(
    serve: Service, stub: StubOllama
) -> None:
    service = await serve(embedder={"embedder": "onnx"}, cache={"enabled": False}, breaker={"failure_threshold": 1})
    embedded = await service.post("/api/embed", json=EMBED)
    assert len(embedded.json()["embeddings"][0]) == 16
    assert stub.stats["requests"]["/api/embed"] == 1
    stub.behaviour("status", status=500)
    await service.post("/api/embed", json=EMBED)
    rejected = await service.post("/api/embed", json=EMBED)
    assert (rejected.status_code, "Retry-After" in rejected.headers) == (503, True)


@pytest.mark.parametrize(
    ("path", "body", "mode"),
    [
        ("/api/chat", {**CHAT, "stream": True}, "hang_between"),
        ("/api/chat", {**CHAT, "stream": False}, "hang"),
        ("/v1/chat/completions", {**CHAT, "stream": True}, "hang_between"),
        ("/api/embed", EMBED, "hang"),
    ],
)
async def test_a_client_that_leaves_stops_the_call(
    serve: Service, stub: StubOllama, path: str, body: dict[str, Any], mode: str
) -> None:
    service = await serve(cache={"enabled": False})
    stub.behaviour(mode, path="/api/embed" if path == "/api/embed" else "/api/chat")

    async def at_it() -> bool:
        return bool(stub.stats["in_flight"] == 1)

    async def stopped() -> bool:
        return bool(stub.stats["cancelled"] == 1 and stub.stats["in_flight"] == 0)

    calling = asyncio.create_task(service.post(path, json=body))
    await wait_until_async(at_it)
    calling.cancel()  # httpx closes the connection
    await wait_until_async(stopped, timeout=2)
    assert (await service.get("/api/circuit-breaker/metrics")).json()["failure_count"] == 0
