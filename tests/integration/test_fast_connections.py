"""A request whose bytes equal those of an earlier one is answered on its connection, as the full path answers it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from api.endpoints.fast_path import FastPath, Repetition
from tests.integration.test_fast_path import FULL, QUESTION, bodies, seen
from tests.integration.test_feedback import vote
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

ASKED, SIMILAR = "How do I reset my password?", "My password, how do I reset?"
WITHOUT_COPIES = {"near_bytes": 0, "shadow_rate": 0.0}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Repetition]:
    """The requests that were known by all their bytes."""
    found: list[Repetition] = []
    begin = FastPath.begin

    def watched(self: FastPath, whole: bytes, state: Any) -> Repetition | None:
        asked = begin(self, whole, state)
        found.extend([asked] if asked is not None else [])
        return asked

    monkeypatch.setattr(FastPath, "begin", watched)
    return found


class Wire:
    """One connection. Each request is one write."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self.writer = writer

    def encoded(self, path: str, body: bytes, **headers: str) -> bytes:
        fields = {"Host": self._host, "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body

    async def read(self) -> httpx.Response:
        async with asyncio.timeout(20):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().strip().split("\r\n")
            headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
            body = await self._reader.readexactly(int(dict(headers)["content-length"]))
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)

    async def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        self.writer.write(self.encoded(path, body, **headers))
        return await self.read()

    async def ask(self, question: str) -> Any:
        return (await self.post("/query", json.dumps({"question": question}).encode())).json()["cache"]


@asynccontextmanager
async def connected(client: httpx.AsyncClient) -> AsyncIterator[Wire]:
    host = urlsplit(str(client.base_url)).netloc
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        yield Wire(host, reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize("near_bytes", [0, 1_000_000])
async def test_answers_byte_for_byte_alike(serve: Service, begun: list[Repetition], near_bytes: int) -> None:
    client = await serve(cache={"near_bytes": near_bytes, "shadow_rate": 0.0})
    async with connected(client) as wire:
        for number, (path, body) in enumerate(bodies(seed=11)):
            await wire.post(path, body)
            fast = await wire.post(path, body)
            assert len(begun) == number + 1, (path, body)
            full = await wire.post(path, body, **{"X-Ragherd-Priority": FULL["X-Ragherd-Priority"]})
            assert len(begun) == number + 1
            assert [name for name, _ in fast.headers.raw] == [name for name, _ in full.headers.raw]
            near = re.sub("exact-near", "exact", fast.headers["cache-status"])
            fast.headers["cache-status"] = near
            assert seen(fast) == seen(full), (path, body)


async def test_counts_logs_and_can_be_judged(serve: Service, begun: list[Repetition]) -> None:
    client = await serve(cache=WITHOUT_COPIES)
    async with connected(client) as wire:
        body = json.dumps({"question": QUESTION}).encode()
        answers = [(await wire.post("/query", body)).json() for _ in range(4)]
        assert len(begun) == 3
        assert len({one["request_id"] for one in answers}) == 4
        metrics = (await client.get("/metrics")).text
        assert re.search(r'ragherd_http_request_duration_seconds_count\{[^}]*route="/query"[^}]*\} 4', metrics)
        assert re.search(r'ragherd_queries_total\{kind="exact",status="hit"\} 3', metrics)
        assert "ragherd_http_requests_in_flight 1.0" in metrics  # the scrape itself
        assert await vote(client, answers[-1], "bad") == 202
        assert (await wire.ask(QUESTION))["status"] == "miss"


async def test_a_request_id_of_the_caller_is_kept(serve: Service, begun: list[Repetition]) -> None:
    client = await serve(cache=WITHOUT_COPIES)
    async with connected(client) as wire:
        body = json.dumps({"question": QUESTION}).encode()
        for _ in range(3):
            answer = await wire.post("/query", body, X_Request_ID="mine-1")
            assert (answer.headers["x-request-id"], answer.json()["request_id"]) == ("mine-1", "mine-1")
    assert begun == []


async def test_what_arrives_during_a_look_up_is_answered_in_order(
    serve: Service, begun: list[Repetition], redis: Redis
) -> None:
    client = await serve(cache=WITHOUT_COPIES)
    async with connected(client) as wire:
        first, second = (json.dumps({"question": f"{number}?"}).encode() for number in range(2))
        for body in (first, first, second, second):
            await wire.post("/query", body)
        known = [wire.encoded("/query", body) for body in (first, second)]
        await redis.client_pause(200, all=True)
        wire.writer.write(known[0])
        async with asyncio.timeout(20):
            while len(begun) < 3:
                await asyncio.sleep(0.001)
        wire.writer.write(known[1] + known[0] + known[1][:50])
        await asyncio.sleep(0.05)
        wire.writer.write(known[1][50:])
        entries = [(await wire.read()).json()["cache"]["entry"] for _ in range(4)]
        assert entries == [entries[0], entries[1]] * 2
        assert entries[0] != entries[1]


async def test_after_connection_close_the_connection_ends(serve: Service, begun: list[Repetition]) -> None:
    client = await serve(cache=WITHOUT_COPIES)
    body = json.dumps({"question": QUESTION}).encode()
    for _ in range(3):
        async with connected(client) as wire:
            answer = await wire.post("/query", body, Connection="close")
            assert answer.headers["connection"] == "close"
    assert begun == []


Change = Callable[[httpx.AsyncClient, Redis, str], Any]


async def deleted(client: httpx.AsyncClient, _: Redis, __: str) -> None:
    assert (await client.delete("/api/semantic-cache", params={"tenant": "default"})).status_code == 200


async def expired(_: httpx.AsyncClient, redis: Redis, entry: str) -> None:
    await redis.hset(entry, "expires_ms", 1)


async def flushed(_: httpx.AsyncClient, redis: Redis, __: str) -> None:
    await redis.flushall()


@pytest.mark.parametrize("change", [deleted, expired, flushed])
async def test_a_similar_answer_is_served_until_it_changes(
    serve: Service, begun: list[Repetition], redis: Redis, change: Change
) -> None:
    client = await serve(cache={**WITHOUT_COPIES, "stale_ttl": 0})
    async with connected(client) as wire:
        await wire.ask(ASKED)
        hits = [await wire.ask(SIMILAR) for _ in range(3)]
        assert [(hit["status"], hit["kind"]) for hit in hits] == [("hit", "semantic")] * 3
        assert len({(hit["entry"], hit["similarity"]) for hit in hits}) == 1
        assert len(begun) == 2
        await change(client, redis, hits[0]["entry"])
        assert (await wire.ask(SIMILAR))["status"] == "miss"


async def test_an_answer_to_the_question_itself_comes_first(serve: Service, begun: list[Repetition]) -> None:
    client, other = await serve(cache=WITHOUT_COPIES), await serve(cache=WITHOUT_COPIES)
    async with connected(client) as wire:
        await wire.ask(ASKED)
        assert [(await wire.ask(SIMILAR))["kind"] for _ in range(2)] == ["semantic"] * 2
        await ask(other, SIMILAR, headers={"Cache-Control": "no-cache"})
        assert [(await wire.ask(SIMILAR))["kind"] for _ in range(2)] == ["exact"] * 2
    assert len(begun) == 3


async def test_without_redis_the_full_path_answers(
    serve: Service, begun: list[Repetition], redis: Redis, stub: StubOllama
) -> None:
    client = await serve(redis={"timeout": 0.2, "request_budget": 0.2}, cache=WITHOUT_COPIES)
    async with connected(client) as wire:
        for _ in range(2):
            await wire.ask(QUESTION)
        await redis.client_pause(3000, all=True)
        assert (await wire.ask(QUESTION))["status"] == "bypass"
    assert len(begun) == 2
