"""Real workers on busy processors: no deadline is charged for lag, and Redis does not count as slow because of it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.alone, pytest.mark.timeout(300)]

BURNERS = 4
LONGEST = 120
"""Seconds after which a burner ends by itself, even if the test fails."""
Fleet = Callable[[], Gunicorn]


@pytest.fixture
def ollama() -> Iterator[StubProcess]:
    """An answer takes 1.5 s."""
    with stub_process() as stub:
        stub.behaviour(delay=0.5, pace=0.1, answer=" ".join(["word"] * 10))
        yield stub


@pytest.fixture
def fleet(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas of two workers each, with the time for Redis that is the default."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2", "EMBEDDER": "onnx"}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        yield lambda: begin(**settings, BULKHEAD_MAX_CONCURRENT="4", OLLAMA_WARM_UP="false")


@contextmanager
def busy_processors() -> Iterator[None]:
    code = f"import time\nend = time.monotonic() + {LONGEST}\nwhile time.monotonic() < end: pass"
    with ExitStack() as stack:
        for _ in range(BURNERS):
            burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", code]))
            stack.callback(burner.kill)
        yield


async def asked_and_left(url: httpx.URL, number: int, seconds: float) -> None:
    body = json.dumps({"question": f"Who has left, number {number}?"}).encode()
    head = ["POST /query HTTP/1.1", "Host: x", "Content-Type: application/json", "Cache-Control: no-store"]
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    await asyncio.sleep(seconds)  # the caller's own patience
    writer.close()


def test_callers_who_leave_are_generated_nothing(fleet: Fleet, ollama: StubProcess) -> None:
    gunicorn = fleet()
    chance = random.Random(3)

    async def all_of_them() -> None:
        url = httpx.URL(gunicorn.url())
        await asyncio.gather(*(asked_and_left(url, number, chance.uniform(0.05, 0.45)) for number in range(150)))

    def over() -> bool:
        bulkheads = gunicorn.get("/api/bulkhead/metrics").json()["bulkheads"].values()
        return not any(one["in_use"] or one["waiting"] for one in bulkheads) and not ollama.stats["in_flight"]

    with busy_processors():
        asyncio.run(all_of_them())
        wait_until(over, timeout=30)
    stats = ollama.stats
    assert stats["cancelled"] == stats["requests"].get("/api/chat", 0), "a generation went on to its end for nobody"


def test_nobody_is_answered_after_the_deadline_of_the_request(fleet: Fleet, ollama: StubProcess) -> None:
    url = fleet().url()
    chance = random.Random(3)

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        headers = {"Cache-Control": "no-store", "X-Request-Timeout": f"{chance.uniform(0.05, 0.45):.2f}"}
        response = await client.post("/query", json={"question": f"Who is late, number {number}?"}, headers=headers)
        return response.status_code

    async def all_of_them() -> Counter[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200)) as client:
            return Counter(await asyncio.gather(*(ask(client, number) for number in range(100))))

    with busy_processors():
        statuses = asyncio.run(all_of_them())
    assert set(statuses) <= {503, 504}, statuses


def test_a_stampede_on_busy_workers_is_one_generation(fleet: Fleet, ollama: StubProcess) -> None:
    urls = [fleet().url(), fleet().url()]
    rounds = 20

    async def stampede(clients: list[httpx.AsyncClient], number: int) -> Counter[str]:
        question = {"question": f"What is on day {number} of the programme? {time.time_ns()}"}

        async def ask(client: httpx.AsyncClient) -> str:
            answer: dict[str, Any] = (await client.post("/query", json=question)).raise_for_status().json()
            return str(answer["cache"]["status"])

        return Counter(await asyncio.gather(*(ask(client) for client in clients for _ in range(30))))

    async def all_of_them() -> list[Counter[str]]:
        limits = httpx.Limits(max_connections=200)
        clients = [httpx.AsyncClient(base_url=url, timeout=60, limits=limits) for url in urls]
        try:
            return [await stampede(clients, number) for number in range(rounds)]
        finally:
            for client in clients:
                await client.aclose()

    with busy_processors():
        seen = asyncio.run(all_of_them())
    assert [statuses["bypass"] for statuses in seen] == [0] * rounds, seen
    assert ollama.stats["requests"]["/api/chat"] == rounds, seen
