"""Real workers under load while Redis is killed, restarted and emptied: no client notices."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import redis as sync_redis

from api.embedded.redis_server import EmbeddedRedis
from tests.stub_ollama import StubOllama, StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTIONS = [f"What is the colour of {animal}s?" for animal in ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "ant")]
PARAPHRASE = "The colour of cats, what is it?"


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def fleet(ollama: StubProcess, redis_server: EmbeddedRedis, tmp_path: Path) -> Iterator[Gunicorn]:
    """Two workers of one master."""
    redis_server.start()
    with sync_redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2"}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        yield begin(**settings, OLLAMA_WARM_UP="false", REDIS_TIMEOUT="1", REDIS_REQUEST_BUDGET="2")
    redis_server.start()


class Load:
    """Callers who ask again and again. `seen`: each answer's moment, status code and `cache.status`."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, str]] = []

    def since(self, moment: float) -> Counter[str]:
        """The cache's part in the answers since a moment."""
        return Counter(status for at, _, status in self.seen if at >= moment)

    async def hits_again(self, moment: float) -> float:
        """Returns, once eight answers in a row were hits, the seconds from `moment` to the first of them."""

        async def steady() -> bool:
            return [status for at, _, status in self.seen if at >= moment][-8:] == ["hit"] * 8

        await wait_until_async(steady, timeout=20)
        after = [(at, status) for at, _, status in self.seen if at >= moment]
        last_other = max((at for at, status in after if status != "hit"), default=moment)
        return last_other - moment


@asynccontextmanager
async def load(url: str, callers: int = 6) -> AsyncIterator[Load]:
    found = Load()
    questions = itertools.cycle(QUESTIONS)

    async def go_on(client: httpx.AsyncClient) -> None:
        while True:
            response = await client.post(f"{url}/query", json={"question": next(questions)})
            status = response.json().get("cache", {}).get("status", "none")
            found.seen.append((time.monotonic(), response.status_code, status))

    async with httpx.AsyncClient(timeout=20) as client:
        tasks = [asyncio.create_task(go_on(client)) for _ in range(callers)]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert {status for _, status, _ in found.seen} == {200}


@pytest.mark.processes
@pytest.mark.alone
async def test_redis_goes_and_comes_and_hits_resume_by_themselves(fleet: Gunicorn, redis_server: EmbeddedRedis) -> None:
    async with load(fleet.url()) as found:
        await found.hits_again(time.monotonic())
        redis_server.kill()
        gone = time.monotonic()

        async def degraded() -> bool:
            return found.since(gone)["bypass"] > 50

        await wait_until_async(degraded)
        redis_server.start()
        assert await found.hits_again(time.monotonic()) < 2


@pytest.mark.processes
@pytest.mark.alone
async def test_after_flushall_the_index_is_back_and_no_worker_was_restarted(
    fleet: Gunicorn, redis_server: EmbeddedRedis
) -> None:
    workers = fleet.workers()
    async with load(fleet.url()) as found:
        await found.hits_again(time.monotonic())
        with sync_redis.Redis.from_url(redis_server.url) as redis:
            redis.flushall()
            lost = time.monotonic()
            assert await found.hits_again(lost) < 2

            async def has_index() -> bool:
                return bool(redis.execute_command("FT._LIST"))

            await wait_until_async(has_index, timeout=max(0.0, lost + 2 - time.monotonic()))
        async with httpx.AsyncClient() as client:

            async def semantic() -> bool:
                """By what explains it, which stores nothing: the paraphrase itself would soon be an exact hit."""
                url = f"{fleet.url()}/api/semantic-cache/explain"
                return bool(
                    (await client.post(url, json={"question": PARAPHRASE})).json()["decision"] == "semantic_hit"
                )

            await wait_until_async(semantic, timeout=2)
    assert fleet.workers() == workers


async def test_without_ollama_all_that_is_cached_is_served(serve: Service, stub: StubOllama) -> None:
    """The embedder is the worker's own. The answers' lifetime passes for one of two workers, who is strict."""
    onnx = {"embedder": "onnx"}
    client = await serve(embedder=onnx, breaker={"failure_threshold": 1})
    short = await serve(embedder=onnx, breaker={"failure_threshold": 1}, cache={"ttl": 0.01})
    await ask(client, "How do I reset my password?")
    await ask(short, "Where is the canteen?")
    await stub.refuse()
    failed = await client.post("/query", json={"question": "Who pays for the train?"})
    assert failed.status_code == 502
    exact = await ask(client, "how do i reset my password")
    semantic = await ask(client, "How can I reset my password?")
    stale = await ask(client, "Where is the canteen?")
    assert [(one["cache"]["status"], one["cache"]["kind"]) for one in (exact, semantic, stale)] == [
        ("hit", "exact"),
        ("hit", "semantic"),
        ("stale", "exact"),
    ]
    missed = await client.post("/query", json={"question": "Who pays for the bus?"})
    assert missed.status_code == 503
    assert int(missed.headers["Retry-After"]) >= 1
