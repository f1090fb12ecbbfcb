"""Requests leave nothing that only the garbage collector frees. It runs rarely, and until then a worker grows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count

import httpx
import pytest

from tests.stub_ollama import StubOllama
from tests.support.garbage import garbage
from tests.support.service import Service, ask
from tests.support.waiting import eventually

TIMES = 10
NUMBERS = count()
MODEL = "llama3.2"


def has_landed() -> bool:
    """Returns whether no flight goes on after its callers."""
    return all(task.get_name() != "flight" for task in asyncio.all_tasks())


def fresh() -> str:
    return f"What is the price of the item {next(NUMBERS)} in the shop?"


async def misses(client: httpx.AsyncClient, stub: StubOllama) -> None:
    await ask(client, fresh())


async def repeats(client: httpx.AsyncClient, stub: StubOllama) -> None:
    await ask(client, "Who approves my holiday?")


async def streams(client: httpx.AsyncClient, stub: StubOllama) -> None:
    response = await client.post("/query", json={"question": fresh(), "stream": True})
    assert response.status_code == 200, response.text


async def chats(client: httpx.AsyncClient, stub: StubOllama) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": fresh()}]}
    assert (await client.post("/api/chat", json=body)).status_code == 200
    assert (await client.post("/v1/chat/completions", json=body | {"stream": True})).status_code == 200


async def embeddings(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for path in ("/api/embed", "/v1/embeddings"):
        response = await client.post(path, json={"model": "nomic-embed-text", "input": fresh()})
        assert response.status_code == 200, response.text


async def uploads(client: httpx.AsyncClient, stub: StubOllama) -> None:
    number = next(NUMBERS)
    body = {"title": "Prices", "text": f"The price is {number} euros.", "source": "prices"}
    response = await client.post("/documents", json=body)
    assert response.status_code in (200, 201), response.text


async def refused_bodies(client: httpx.AsyncClient, stub: StubOllama) -> None:
    assert (await client.post("/query", json={"question": 5})).status_code == 422
    assert (await client.post("/query", content=b"{")).status_code in (400, 422)
    assert (await client.get("/nothing")).status_code == 404


async def upstream_faults(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("status", path="/api/chat")
    response = await client.post("/query", json={"question": fresh()})
    assert response.status_code >= 500, response.text
    stub.behaviour()


async def answers_cut_off(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for mode in ("close", "cut", "error_line", "no_done"):
        stub.behaviour(mode, path="/api/chat")
        response = await client.post("/query", json={"question": fresh()})
        assert response.status_code >= 500, response.text
    stub.behaviour()
    await stub.refuse()
    response = await client.post("/query", json={"question": fresh()})
    assert response.status_code >= 500, response.text
    await stub.listen()


async def calls_to_an_open_breaker(client: httpx.AsyncClient, stub: StubOllama) -> None:
    (await client.post("/api/circuit-breaker/force-open")).raise_for_status()
    response = await client.post("/query", json={"question": fresh()})
    assert response.status_code == 503, response.text
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def questions_while_embeddings_fail(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("status", path="/api/embed")
    await ask(client, fresh())
    stub.behaviour()


async def readers_that_leave(client: httpx.AsyncClient, stub: StubOllama) -> None:
    async with client.stream("POST", "/query", json={"question": fresh(), "stream": True}) as response:
        async for _ in response.aiter_bytes():
            break


async def askers_that_leave_before_the_first_word(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(delay=5.0, path="/api/chat")
    asked = stub.stats["requests"].get("/api/chat", 0)
    leaving = asyncio.create_task(client.post("/query", json={"question": fresh()}))
    await eventually(lambda: stub.stats["requests"].get("/api/chat", 0) > asked)
    leaving.cancel()
    await asyncio.wait([leaving])
    await eventually(has_landed)
    stub.behaviour()


async def several_that_ask_the_same(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(delay=0.1, path="/api/chat")
    question = fresh()
    await asyncio.gather(*(ask(client, question) for _ in range(3)))
    stub.behaviour()


KINDS = (
    misses,
    repeats,
    streams,
    chats,
    embeddings,
    uploads,
    refused_bodies,
    upstream_faults,
    answers_cut_off,
    calls_to_an_open_breaker,
    questions_while_embeddings_fail,
    readers_that_leave,
    askers_that_leave_before_the_first_word,
    several_that_ask_the_same,
)


def named(one: object) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def is_ours(one: object) -> bool:
    """Returns whether an object is the service's. The test's own client leaves rings, too."""
    return named(one).startswith(("api.", "redis.")) or isinstance(one, BaseException)


@pytest.mark.parametrize("requests", KINDS, ids=lambda kind: kind.__name__)
async def test_requests_leave_nothing_to_the_garbage_collector(
    serve: Service, stub: StubOllama, requests: Callable[[httpx.AsyncClient, StubOllama], Awaitable[None]]
) -> None:
    client = await serve(breaker={"failure_threshold": 1.0})
    for _ in range(3):
        await requests(client, stub)
    with garbage() as found:
        for _ in range(TIMES):
            await requests(client, stub)
        await eventually(has_landed)
    assert Counter(map(named, filter(is_ours, found))) == {}
