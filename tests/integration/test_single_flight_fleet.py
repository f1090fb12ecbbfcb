"""Equal questions to real workers share one generation, even if the leading worker is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.processes

QUESTION = "How do I reset my password?"
MANY = 200
SECONDS = 2.0


@pytest.fixture
def ollama() -> Iterator[StubProcess]:
    """Each answer takes two seconds, and comes in pieces."""
    with stub_process() as stub:
        stub.behaviour(delay=SECONDS, path="/api/chat")
        yield stub


@pytest.fixture
def replicas(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    """Two masters with one worker each, so that the client chooses the worker."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
    shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "OLLAMA_WARM_UP": "false", **patient}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        yield [begin(**shared) for _ in range(2)]


def generations(ollama: StubProcess) -> int:
    return int(ollama.stats["requests"].get("/api/chat", 0))


def is_followed(redis_url: str) -> bool:
    """Returns whether a worker waits for another's answer."""
    with sync_redis.Redis.from_url(redis_url, decode_responses=True) as client:
        fields: Any = [client.hkeys(key) for key in client.scan_iter("rag:flight:*}")]
    return any(name.startswith("follower:") for names in fields for name in names)


async def ask(client: httpx.AsyncClient, url: str, **more: Any) -> dict[str, Any]:
    """Returns the answer, or the error."""
    try:
        response = await client.post(f"{url}/query", json={"question": QUESTION, **more})
    except httpx.HTTPError as error:
        return {"error": type(error).__name__}
    found: dict[str, Any] = response.json()
    return found if response.status_code == 200 else {"error": response.status_code, **found}


async def test_many_equal_questions_over_two_workers_are_generated_once(
    replicas: list[Gunicorn], ollama: StubProcess
) -> None:
    urls = [replica.url() for replica in replicas]
    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=MANY)) as client:
        answers = await asyncio.gather(*(ask(client, urls[number % 2]) for number in range(MANY)))
    assert {answer.get("answer") for answer in answers} == {f"echo: {QUESTION}"}, Counter(map(str, answers))
    assert Counter(answer["cache"]["status"] for answer in answers) == {"miss": 1, "coalesced": MANY - 1}
    assert len({answer["cache"]["entry"] for answer in answers}) == 1
    assert generations(ollama) == 1


async def test_when_the_leader_is_killed_nobody_elsewhere_is_lost(
    replicas: list[Gunicorn], ollama: StubProcess, redis_url: str
) -> None:
    leader, follower = replicas
    async with httpx.AsyncClient(timeout=40, limits=httpx.Limits(max_connections=MANY)) as client:
        lost = [asyncio.create_task(ask(client, leader.url())) for _ in range(20)]
        await wait_until_async(lambda: asyncio.to_thread(generations, ollama))
        kept = [asyncio.create_task(ask(client, follower.url())) for _ in range(MANY - 20)]
        await wait_until_async(lambda: asyncio.to_thread(is_followed, redis_url))
        for pid in leader.workers():
            os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*kept)
        await asyncio.gather(*lost)
    assert {answer.get("answer") for answer in answers} == {f"echo: {QUESTION}"}, Counter(map(str, answers))
    assert generations(ollama) == 2


async def test_those_who_stream_on_another_worker_get_the_words_as_they_come(
    replicas: list[Gunicorn], ollama: StubProcess
) -> None:
    ollama.behaviour(pace=0.15, answer=" ".join(map(str, range(20))), path="/api/chat")
    leader, follower = (replica.url() for replica in replicas)
    async with httpx.AsyncClient(timeout=30) as client:
        leading = asyncio.create_task(ask(client, leader))
        await wait_until_async(lambda: asyncio.to_thread(generations, ollama))
        body = {"question": QUESTION, "stream": True}
        async with client.stream("POST", f"{follower}/query", json=body) as response:
            arrivals = [time.monotonic() async for line in response.aiter_lines() if line == "event: token"]
        assert response.headers["Cache-Status"] == "ragherd; fwd=miss; collapsed"
        assert (await leading)["cache"]["status"] == "miss"
    assert len(arrivals) > 5
    assert arrivals[-1] - arrivals[0] > 1.0
    assert generations(ollama) == 1
