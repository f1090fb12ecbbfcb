"""Redis starts late, fails, loses data: answers continue, and the cache recovers without help."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.embedded.redis_server import EmbeddedRedis, find_redis_binary
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until, wait_until_async

QUESTION = "How long is the warranty?"


@contextmanager
def plain_redis(folder: Path) -> Iterator[str]:
    """A Redis without the search module, on a Unix socket."""
    socket = folder / "plain.sock"
    command = [str(find_redis_binary().server), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(socket.exists)
            yield f"unix://{socket}"
        finally:
            server.kill()


async def _hits(client: httpx.AsyncClient) -> bool:
    return bool((await ask(client, QUESTION))["cache"]["status"] == "hit")


async def test_answers_go_on_without_redis_and_hits_resume(
    serve: Service, redis_server: EmbeddedRedis, stub: StubOllama
) -> None:
    client = await serve()
    await ask(client, QUESTION)
    redis_server.kill()
    try:
        for number in range(5):
            answered = await ask(client, f"{QUESTION} {number}")
            assert answered["cache"]["status"] == "bypass"
            assert answered["timings_ms"]["cache"] < 250
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["database"]) == (200, "degraded", False)
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get("/api/circuit-breaker/metrics")).json()["store"] == "local"
        assert (await client.get("/api/connection-pool/metrics")).status_code == 200
        assert (await client.get("/api/semantic-cache/metrics")).json()["store"] == "local"
        workers = await client.get("/api/workers")
        assert (workers.status_code, workers.headers["Content-Type"]) == (503, "application/problem+json")
        explained = await client.post("/api/semantic-cache/explain", json={"question": QUESTION})
        assert (explained.status_code, explained.headers["Retry-After"]) == (503, "1")
        await stub.refuse()

        async def unhealthy() -> bool:
            dead = await client.get("/health")
            return (dead.status_code, dead.json()["status"]) == (503, "unhealthy")

        await wait_until_async(unhealthy)
        await stub.listen()
    finally:
        redis_server.start()
    await wait_until_async(lambda: _hits(client))
    metrics = (await client.get("/api/circuit-breaker/metrics")).json()
    assert metrics["store"] == "shared"


async def test_after_an_outage_no_dead_connection_of_many_delays_the_return(
    serve: Service, redis_server: EmbeddedRedis
) -> None:
    client = await serve()
    await asyncio.gather(*(ask(client, f"{QUESTION} {number}") for number in range(40)))
    redis_server.kill()
    redis_server.start()
    await wait_until_async(lambda: _hits(client), timeout=3)
    answered = await asyncio.gather(*(ask(client, QUESTION) for _ in range(40)))
    assert {answer["cache"]["status"] for answer in answered} == {"hit"}


async def test_a_worker_that_starts_before_redis_uses_it_when_it_comes(
    stub: StubOllama, redis_server: EmbeddedRedis, redis: Any
) -> None:
    redis_server.kill()
    try:
        settings = make_settings(redis_server.url, stub.base_url)
        async with running_service(settings) as client:
            assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
            redis_server.start()
            await wait_until_async(lambda: _hits(client))
    finally:
        redis_server.start()


async def test_after_flushall_the_index_is_back_and_hits_resume(serve: Service, redis: Any) -> None:
    client = await serve()
    await ask(client, QUESTION)
    await redis.flushall()
    assert await redis.execute_command("FT._LIST") == []
    await ask(client, QUESTION)
    await wait_until_async(lambda: _hits(client), timeout=2)

    words = itertools.permutations(["The", "warranty", "how", "long", "is?"])

    async def semantic() -> bool:
        """Each time in another order, or the answer to the one before would be found."""
        answered = await ask(client, " ".join(next(words)))
        return bool(answered["cache"]["kind"] == "semantic")

    await wait_until_async(semantic, timeout=2)


async def test_workers_that_start_together_make_one_index(serve: Service, redis: Any) -> None:
    await asyncio.gather(*(serve() for _ in range(4)))
    names = await redis.execute_command("FT._LIST")
    assert len(names) == 1


async def test_without_a_search_module_one_line_says_so_and_answers_go_on(
    stub: StubOllama, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with plain_redis(tmp_path) as url:
        async with running_service(make_settings(url, stub.base_url)) as client:
            assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
            assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
            assert (await client.get("/api/circuit-breaker/metrics")).json()["store"] == "shared"
    lines = [line for line in capfd.readouterr().err.splitlines() if "redis_without_search" in line]
    assert len(lines) == 1
    assert "Use Redis 8" in lines[0]


async def test_a_corrupt_entry_is_counted_not_served_and_then_replaced(serve: Service, redis: Any) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await redis.hset(entry, "sources", "no JSON")
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    report = (await client.get("/api/semantic-cache/metrics")).json()
    assert report["corrupt"] == 3, "found by its question, on both paths, and by its meaning"
    assert (await ask(client, QUESTION))["cache"]["kind"] == "exact"


async def test_an_embedder_that_hangs_is_a_miss_within_its_deadline(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder={"embed_timeout": 0.2})
    await ask(client, QUESTION)
    stub.behaviour("hang", path="/api/embed")
    answered = await ask(client, "a new question")
    assert answered["cache"]["status"] == "miss"
    assert answered["timings_ms"]["embed"] < 1_000
    assert (await ask(client, QUESTION))["cache"]["kind"] == "exact"


async def test_a_failing_embedder_opens_its_own_breaker_and_no_other(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"failure_threshold": 2})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/embed")
    for number in range(4):
        await ask(client, f"question {number}")
    breakers = (await client.get("/api/circuit-breaker/metrics")).json()["breakers"]
    assert {name: breaker["state"] for name, breaker in breakers.items()} == {
        "ollama": "CLOSED",
        "ollama-embed": "OPEN",
    }
