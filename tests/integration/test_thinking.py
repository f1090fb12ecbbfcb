"""A model's thoughts appear where an API has a field for them, and are never stored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.event_stream import streamed, text_of
from tests.support.replies import fields
from tests.support.service import Service, ask

SAID = "<think>\nThe user asks for a number.\n</think>\n\nIt is 4, as `<think>` says."
ANSWER = "It is 4, as `<think>` says."
THOUGHT = "The user asks for a number."
TURNS: dict[str, Any] = {"model": "llama3.2", "messages": [{"role": "user", "content": "What is two and two?"}]}
AFRESH = {"Cache-Control": "no-cache"}


@pytest.fixture
async def client(serve: Service, stub: StubOllama) -> httpx.AsyncClient:
    stub.behaviour(answer=SAID, path="/api/chat")
    return await serve()


async def test_query_and_its_cache_have_the_answer_alone(client: httpx.AsyncClient, redis: Redis) -> None:
    assert (await ask(client, "What is two and two?"))["answer"] == ANSWER
    hit = await ask(client, "What is two and two?")
    assert (hit["answer"], hit["cache"]["status"]) == (ANSWER, "hit")
    keys = [key async for key in redis.scan_iter("rag:cache:*")]
    assert keys
    for key in keys:
        assert THOUGHT.encode() not in b"".join(fields(await redis.hgetall(key)).values())


async def test_a_stream_has_no_thoughts(client: httpx.AsyncClient) -> None:
    assert text_of((await streamed(client, "What is two and two?"))[1]) == ANSWER


async def test_ollama_has_a_field_for_them(client: httpx.AsyncClient) -> None:
    chat = (await client.post("/api/chat", json={**TURNS, "stream": False})).json()
    assert chat["message"] == {"role": "assistant", "content": ANSWER, "thinking": THOUGHT}
    cached = (await client.post("/api/chat", json={**TURNS, "stream": False})).json()
    assert cached["message"] == {"role": "assistant", "content": ANSWER}
    streamed = (await client.post("/api/chat", json=TURNS, headers=AFRESH)).text
    lines = [json.loads(line)["message"] for line in streamed.splitlines()]
    assert "".join(line["content"] for line in lines) == ANSWER
    assert "".join(line.get("thinking", "") for line in lines) == THOUGHT
    prompt = {"model": "llama3.2", "prompt": "What is two and two?", "stream": False}
    generated = (await client.post("/api/generate", json=prompt, headers=AFRESH)).json()
    assert (generated["response"], generated["thinking"]) == (ANSWER, THOUGHT)


async def test_openai_has_ollamas_field_for_them(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=TURNS)).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT}
    streamed = (await client.post("/v1/chat/completions", json={**TURNS, "stream": True}, headers=AFRESH)).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
    assert "".join(delta.get("reasoning", "") for delta in deltas) == THOUGHT


async def test_thoughts_alone_are_no_answer_worth_keeping(
    client: httpx.AsyncClient, stub: StubOllama, redis: Redis
) -> None:
    stub.behaviour(answer="<think>I do not know", path="/api/chat")
    for _ in range(2):
        answered = await ask(client, "What is it?")
        assert (answered["answer"], answered["cache"]["status"]) == ("", "miss")
    assert [key async for key in redis.scan_iter("rag:cache:*")] == []
