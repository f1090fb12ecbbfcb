"""A repeated request is answered as on the full path, and only if the full path would still answer so."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from api.ports.limits import Charge
from api.ports.question import AnswerFinished
from api.query.repeats import Repeat
from api.query.service import QueryService
from tests.integration.test_feedback import KEYS, bearer, vote
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

FULL = {"X-Ragherd-Priority": "interactive"}
"""The default, said aloud: the answer is the same, and the request takes the full path."""
QUESTION = "What is the capital of France?"
VARYING = re.compile(
    rb'"(total|embed|cache|retrieve|generate|age_seconds|created|total_duration)":[\d.]+'
    rb'|"created_at":"[^"]+"|"(request_id|id)":"[^"]+"|,"total_duration":\d+'
)
OWN = frozenset({"date", "x-request-id", "content-length", "age"})


class Taken:
    """Counts the questions that the fast path answered."""

    def __init__(self) -> None:
        self.questions = 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Watches the flow's shortcut."""
    counted, again, near = Taken(), QueryService.again, QueryService.near

    async def watched(
        self: QueryService, repeat: Repeat, request_id: str, charge: Charge | None = None
    ) -> AnswerFinished | None:
        answered = await again(self, repeat, request_id, charge)
        counted.questions += answered is not None
        return answered

    def watched_near(self: QueryService, repeat: Repeat, request_id: str) -> AnswerFinished | None:
        answered = near(self, repeat, request_id)
        counted.questions += answered is not None
        return answered

    monkeypatch.setattr(QueryService, "again", watched)
    monkeypatch.setattr(QueryService, "near", watched_near)
    return counted


def seen(response: httpx.Response) -> tuple[Any, ...]:
    """What must not differ: all but times and ids."""
    headers = {name: value for name, value in response.headers.items() if name not in OWN}
    headers["cache-status"] = re.sub(r"ttl=\d+", "ttl=", headers.get("cache-status", ""))
    return response.status_code, headers, VARYING.sub(b"", response.content)


def bodies(seed: int) -> Iterator[tuple[str, bytes]]:
    """Valid requests of every path, written in different ways."""
    chance = random.Random(seed)
    for number in range(12):
        question = f"{chance.choice(['Why', 'How', 'Wie', 'なぜ'])} {number} {chance.choice(['Pippin?', 'é', 'a  b'])}"
        options = chance.choice([{}, {"temperature": 0.5}, {"num_predict": 3, "stop": ["x"]}])
        turns = [{"role": "user", "content": question}]
        earlier = [{"role": "system", "content": "Be brief."}] if chance.random() < 0.5 else []
        fields: dict[str, dict[str, Any]] = {
            "/query": {"question": question, "options": options, "top_k": chance.choice([0, 4])},
            "/api/chat": {"model": "llama3.2", "messages": [*earlier, *turns], "options": options, "stream": False},
            "/api/generate": {"model": "llama3.2", "prompt": question, "options": options, "stream": False},
            "/v1/chat/completions": {"model": "llama3.2", "messages": [*earlier, *turns], "max_tokens": 9},
        }
        if number % 3 == 0:
            fields["/api/chat"]["format"] = {"type": "object"}
            fields["/query"]["tenant"] = f"tenant {number}"
        for path, body in fields.items():
            yield path, json.dumps(body, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])).encode()


async def test_both_paths_answer_byte_for_byte_alike(serve: Service, taken: Taken) -> None:
    client = await serve()
    asked = 0
    for path, body in bodies(seed=7):
        await client.post(path, content=body, headers={"Content-Type": "application/json"})
        before = taken.questions
        fast = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert taken.questions == before + 1, (path, body)
        full = await client.post(path, content=body, headers={"Content-Type": "application/json", **FULL})
        assert taken.questions == before + 1
        assert seen(fast) == seen(full), (path, body)
        asked += 1
    assert asked == 48


async def test_a_repeated_question_is_counted_and_can_be_judged(serve: Service, taken: Taken) -> None:
    client = await serve()
    for _ in range(3):
        hit = await ask(client, QUESTION)
    assert taken.questions == 2
    report = (await client.get("/api/semantic-cache/metrics")).json()
    metrics = (await client.get("/metrics")).text
    assert re.search(r'ragherd_http_requests_total\{[^}]*route="/query"[^}]*status="200"[^}]*\} 3', metrics) or (
        re.search(r'ragherd_http_request_duration_seconds_count\{[^}]*route="/query"[^}]*\} 3', metrics)
    ), report
    assert await vote(client, hit, "bad") == 202
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    assert taken.questions == 2


async def test_the_key_decides_before_the_memory_does(serve: Service, taken: Taken, stub: StubOllama) -> None:
    client = await serve(access=KEYS)
    for _ in range(2):
        mine = await ask(client, QUESTION, headers=bearer("acme-1"))
    assert (mine["cache"]["status"], taken.questions) == ("hit", 1)
    for headers in ({}, bearer("guessed"), {"Authorization": "Basic acme-1"}):
        refused = await client.post("/query", json={"question": QUESTION}, headers=headers)
        assert refused.status_code == 401
    other = await ask(client, QUESTION, headers=bearer("other-1"))
    assert (other["cache"]["status"], taken.questions) == ("miss", 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache-Control": "no-cache"},
        {"Cache-Control": "no-store"},
        {"Accept": "text/event-stream"},
        {"X-Request-Timeout": "20"},
        {"X-Ragherd-Priority": "batch"},
    ],
    ids=str,
)
async def test_a_header_that_changes_the_answer_takes_the_full_path(
    serve: Service, taken: Taken, headers: Mapping[str, str]
) -> None:
    client = await serve()
    for _ in range(2):
        await ask(client, QUESTION)
    answer = await client.post("/query", json={"question": QUESTION}, headers=headers)
    assert (answer.status_code, taken.questions) == (200, 1)


async def test_what_was_invalidated_is_generated_again(serve: Service, taken: Taken, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    for _ in range(2):
        await ask(one, QUESTION)
    assert taken.questions == 1
    await other.delete("/api/semantic-cache", params={"tenant": "default"})
    assert (await ask(one, QUESTION))["cache"]["status"] == "miss"
    assert taken.questions == 1
    assert (await ask(one, QUESTION))["cache"]["status"] == "hit"
    assert taken.questions == 2


async def test_without_redis_the_full_path_answers(
    serve: Service, taken: Taken, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(redis={"timeout": 0.2, "request_budget": 0.2})
    for _ in range(2):
        await ask(client, QUESTION)
    await redis.client_pause(3000, all=True)
    assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
    assert taken.questions == 1


async def test_a_body_that_comes_late_or_in_parts_is_read(serve: Service, taken: Taken) -> None:
    client = await serve()
    body = json.dumps({"question": QUESTION}).encode()
    host = urlsplit(str(client.base_url)).netloc
    kind = {"Content-Type": "application/json", "Host": host, "Accept": "*/*"}
    for _ in range(2):
        await client.post("/query", content=body, headers=kind)
    head = "".join(f"{name}: {value}\r\n" for name, value in kind.items()) + f"Content-Length: {len(body)}\r\n"
    for parts in ([body[:9], body[9:]], [body], [body[:-1], body[-1:]]):
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(f"POST /query HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        for part in parts:
            await writer.drain()
            await asyncio.sleep(0.1)  # longer than the fast path waits
            writer.write(part)
        reply = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert reply.startswith(b"HTTP/1.1 200"), reply
        assert b'"kind":"exact"' in reply
    assert taken.questions == 1
