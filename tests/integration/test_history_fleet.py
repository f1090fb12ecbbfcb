"""The history of two replicas agrees with Prometheus's counters and with the client, even if a worker is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

REQUESTS = 3_000
CLIENTS = 12
QUESTIONS = 60
SERIES = re.compile(r'^ragherd_queries_total\{kind="\w+",status="(\w+)"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def replicas(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
    with gunicorns("api.asgi:app", tmp_path) as begin:
        shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2", **patient}
        yield [begin(**shared, METRICS_PORT=free_port()) for _ in range(2)]


async def asked(urls: list[str], kill: Callable[[], None]) -> tuple[Counter[str], int]:
    """Asks all questions. Returns the answers by cache status, and how many requests got no answer."""
    seen: Counter[str] = Counter()
    unanswered, numbers = 0, count()
    # Connections are not reused, so that the system spreads the requests over the workers.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=30, limits=limits, trust_env=False) as client:

        async def ask_on() -> None:
            nonlocal unanswered
            for number in numbers:
                if number >= REQUESTS:
                    return
                if number == REQUESTS // 2:
                    kill()
                body = {"question": f"What is the answer to question {number % QUESTIONS}?"}
                try:
                    response = await client.post(f"{urls[number % 2]}/query", json=body)
                except httpx.HTTPError:
                    unanswered += 1
                    continue
                assert response.status_code == 200, response.text
                seen[response.json()["cache"]["status"]] += 1

        await asyncio.gather(*(ask_on() for _ in range(CLIENTS)))
    return seen, unanswered


def prometheus(replicas: list[Gunicorn]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for replica in replicas:
        for status, value in SERIES.findall(replica.metrics()):
            sums[status] += int(float(value))
    return +sums


def history(replica: Gunicorn) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = replica.get("/api/history").json()["points"]
    return [point for point in points if not point.get("gap")]


def queries(replica: Gunicorn) -> Counter[str]:
    sums: Counter[str] = Counter()
    for point in history(replica):
        sums.update(point["queries"])
    return +sums


def test_the_history_agrees_with_prometheus_and_the_client_though_a_worker_is_killed(replicas: list[Gunicorn]) -> None:
    urls = [replica.url() for replica in replicas]
    victim = min(replicas[0].workers())
    seen, unanswered = asyncio.run(asked(urls, lambda: os.kill(victim, signal.SIGKILL)))
    assert seen.total() + unanswered == REQUESTS
    assert unanswered <= CLIENTS
    found: Counter[str] = Counter()

    def complete() -> bool:
        nonlocal found
        found = queries(replicas[0])
        return found == queries(replicas[1]) and found.total() >= 0.99 * seen.total()

    wait_until(complete, timeout=60)
    counted = prometheus(replicas)
    for status in ("hit", "miss"):
        for others in (seen, counted):
            assert found[status] == pytest.approx(others[status], rel=0.01, abs=2), (found, counted, seen)
    by_latency = {status for point in history(replicas[0]) for status in point["latency_ms"]}
    assert by_latency >= {"hit", "miss"}

    def replaced() -> bool:
        points = history(replicas[0])
        return (sum(point["restarts"] for point in points), points[-1]["workers"]) == (1, 4)

    wait_until(replaced, timeout=90)
    assert sum(point["started"] for point in history(replicas[0])) == 5
