"""Priorities of callers, and what those who wait for a permit are told."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.integration.test_documents import ONNX
from tests.stub_ollama import StubOllama
from tests.support.event_stream import Event, events
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

BATCH = {"X-Ragherd-Priority": "batch"}
ONE = {"bulkhead": {"max_concurrent": 1}}


async def until(client: httpx.AsyncClient, **expected: Any) -> None:
    """Waits until the bulkhead's figures are as expected."""

    async def reached() -> bool:
        found = (await client.get("/api/bulkhead/metrics")).json()
        return {name: found[name] for name in expected} == expected

    await wait_until_async(reached)


def waiting(user: int = 0, batch: int = 0) -> dict[str, Any]:
    return {"waiting_by_priority": {"user": user, "batch": batch, "background": 0}}


def asking(client: httpx.AsyncClient, question: str, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/query", json={"question": question}, headers=headers))


async def held(client: httpx.AsyncClient, stub: StubOllama) -> asyncio.Task[httpx.Response]:
    """Takes the only permit until `release`."""
    stub.behaviour(mode="hang", path="/api/chat")
    holding = asking(client, "Which question has the permit?")
    await until(client, in_use=1)
    return holding


async def release(stub: StubOllama, *calls: asyncio.Task[httpx.Response]) -> None:
    stub.behaviour("ok")
    stub.break_connections()
    assert {(await call).status_code for call in calls} == {200}


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, question: str
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[Event]]]:
    body = {"question": question, "stream": True}
    async with client.stream("POST", "/query", json=body) as response:
        yield response, events(response)


async def test_a_waiting_stream_tells_its_position_until_it_is_its_turn(serve: Service, stub: StubOllama) -> None:
    client = await serve(**ONE)
    holding = await held(client, stub)
    openai = asyncio.create_task(
        client.post(
            "/v1/chat/completions",
            json={
                "model": "llama3.2",
                "stream": True,
                "messages": [{"role": "user", "content": "What does OpenAI see?"}],
            },
        )
    )
    await until(client, **waiting(user=1))
    leaving = asking(client, "Who leaves?")
    await until(client, **waiting(user=2))
    async with stream(client, "Who waits?") as (response, arriving):
        assert await anext(arriving) == ("queued", {"position": 3, "estimated_seconds": None})
        assert response.headers["Cache-Status"] == "ragherd; fwd=miss"
        leaving.cancel()
        assert await anext(arriving) == ("queued", {"position": 2, "estimated_seconds": None})
        await release(stub, holding, openai)
        rest = [name async for name, _ in arriving]
    assert rest.count("queued") <= 1, "the first place, if it lasts"
    assert [name for name in dict.fromkeys(rest) if name != "queued"] == ["sources", "token", "done"]
    lines = [line for line in openai.result().text.splitlines() if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    assert {json.loads(line.removeprefix("data: "))["object"] for line in lines[:-1]} == {"chat.completion.chunk"}


async def test_estimates_follow_the_measured_time_of_answers(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1, "max_queue": 2, "max_wait": 2.5})
    stub.behaviour(delay=0.8, path="/api/chat")
    await ask(client, "How long does it take?")
    figures = (await client.get("/api/bulkhead/metrics")).json()
    seconds = figures["service_seconds"]
    assert seconds >= 0.8
    holding = await held(client, stub)
    first = asking(client, "First?")
    await until(client, **waiting(user=1))
    async with stream(client, "Second?") as (_, arriving):
        rejected = await client.post("/query", json={"question": "Third?"})
        assert rejected.status_code == 503
        assert int(rejected.headers["Retry-After"]) == math.ceil(3 * seconds)
        name, said = await anext(arriving)
        assert (name, said["position"]) == ("queued", 2)
        assert said["estimated_seconds"] == pytest.approx(2 * seconds, abs=0.1)
        rest = [event async for event in arriving]
    assert (rest[-1][0], rest[-1][1]["reason"]) == ("error", "deadline")
    assert (await first).json()["reason"] == "deadline"
    await release(stub, holding)


async def test_users_pass_batch_calls_and_batch_calls_give_way_in_a_full_queue(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(bulkhead={"max_concurrent": 1, "max_queue": 2})
    holding = await held(client, stub)
    patient = asking(client, "First in line?", **BATCH)
    await until(client, **waiting(batch=1))
    displaced = asking(client, "Second in line?", **BATCH)
    await until(client, **waiting(batch=2))
    user = asking(client, "Third in line?")
    assert (await displaced).json()["reason"] == "displaced"
    await until(client, rejected_by_priority={"user": 0, "batch": 1, "background": 0}, **waiting(user=1, batch=1))
    done: list[str] = []
    user.add_done_callback(lambda _: done.append("user"))
    patient.add_done_callback(lambda _: done.append("batch"))
    await release(stub, holding, user, patient)
    assert done == ["user", "batch"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the same worker", "another worker"])
async def test_a_user_who_joins_a_batch_flight_promotes_it(serve: Service, stub: StubOllama, elsewhere: bool) -> None:
    client = await serve(**ONE)
    other = await serve(**ONE) if elsewhere else client
    holding = await held(client, stub)
    calls = [asking(client, "A batch question?", **BATCH)]
    await until(client, **waiting(batch=1))
    calls.append(asking(client, "What do both ask?", **BATCH))
    await until(client, **waiting(batch=2))
    calls.append(asking(other, "What do both ask?"))
    await until(client, **waiting(user=1, batch=1))
    await release(stub, holding, *calls)
    assert calls[-1].result().json()["cache"]["status"] == "coalesced"


async def test_a_key_limited_to_batch_cannot_ask_for_more(serve: Service, stub: StubOllama) -> None:
    keys = {"api_keys": "acme=key-of-people,acme=key-of-jobs", "batch_keys": "key-of-jobs"}
    client = await serve(access=keys, **ONE)
    people, jobs = ({"Authorization": f"Bearer key-of-{owner}"} for owner in ("people", "jobs"))
    refused = await client.post(
        "/query", json={"question": "Now?"}, headers={**jobs, "X-Ragherd-Priority": "interactive"}
    )
    assert (refused.status_code, refused.json()["detail"]) == (403, "The key is limited to batch priority.")
    stub.behaviour(mode="hang", path="/api/chat")
    holding = asking(client, "Who has the permit?", **people)
    await until(client, in_use=1)
    chat = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "Who waits?"}]}
    calls = [
        asyncio.create_task(client.post(path, json=chat, headers=jobs))
        for path in ("/api/chat", "/v1/chat/completions")
    ]
    await until(client, **waiting(batch=2))
    calls.append(asking(client, "Who goes first?", **people))
    await until(client, **waiting(user=1, batch=2))
    await release(stub, holding, *calls)


async def test_a_key_limited_to_batch_does_not_embed_before_questions(serve: Service, stub: StubOllama) -> None:
    """With EMBEDDER=onnx, clients' embeddings wait for the same permits as answers."""
    keys = {"api_keys": "acme=key-of-people,acme=key-of-jobs", "batch_keys": "key-of-jobs"}
    client = await serve(access=keys, embedder=ONNX, **ONE)
    people, jobs = ({"Authorization": f"Bearer key-of-{owner}"} for owner in ("people", "jobs"))
    stub.behaviour(mode="hang", path="/api/chat")
    calls = [asking(client, "Who has the permit?", **people)]
    await until(client, in_use=1)
    body = {"model": "nomic-embed-text", "input": "text"}
    calls.append(asyncio.create_task(client.post("/api/embed", json=body, headers=jobs)))
    await until(client, **waiting(batch=1))
    calls.append(asyncio.create_task(client.post("/v1/embeddings", json=body, headers=people)))
    await until(client, **waiting(user=1, batch=1))
    await release(stub, *calls)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/query", {"question": "Why?"}),
        ("/api/generate", {"model": "llama3.2", "prompt": "Why?"}),
        ("/v1/messages", {"model": "llama3.2", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}),
    ],
)
async def test_an_unknown_priority_is_refused_by_name(serve: Service, path: str, body: dict[str, Any]) -> None:
    client = await serve()
    refused = await client.post(path, json=body, headers={"X-Ragherd-Priority": "urgent"})
    assert refused.status_code in {400, 422}
    assert "X-Ragherd-Priority" in refused.text
