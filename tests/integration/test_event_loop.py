"""No input blocks the event loop for more than 50 ms, and no document for more than 100."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis as sync_redis

from api.embedded.redis_server import EmbeddedRedis
from tests.stub_ollama import StubProcess, stub_process
from tests.support.cpu_share import slowness
from tests.support.largest_bodies import ANSWERED, DOCUMENTS, REFUSED, SMALL, Sent
from tests.support.loop_watch import watched_worker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.alone]

MAX_BLOCK_SECONDS = 0.05
"""The longest allowed block of the event loop, on a machine of the usual speed."""
MAX_BLOCK_BESIDE_THREADS = 0.1
"""The same while threads of the worker read a document: they and the loop take turns with the GIL."""
SMALL_REFUSAL = 4000
"""Size of a response in bytes."""


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        stub.behaviour(answer="Thirty days, and both must agree.")
        yield stub


@pytest.fixture(scope="module")
def worker(ollama: StubProcess, redis_server: EmbeddedRedis) -> Iterator[httpx.Client]:
    redis_server.start()
    with sync_redis.Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "OLLAMA_WARM_UP": "false"}
    settings["OLLAMA_MAX_PROMPT_TOKENS"] = "1000000"  # the largest bodies are answered
    more = {"LLM_MODEL": "llama3.2", "EMBEDDER": "ollama", "REDIS_TIMEOUT": "5", "REDIS_REQUEST_BUDGET": "5"}
    more["CHUNK_TOKENS"] = "1000"  # fewer embeddings by the stub, which are not what is measured
    with watched_worker({**settings, **more}) as client:
        for sent in SMALL:
            assert post(client, sent).is_success  # a first request imports and opens what later ones find
        yield client


def post(worker: httpx.Client, sent: Sent) -> httpx.Response:
    return worker.post(sent.path, content=sent.content, headers={"Content-Type": sent.kind})


def watched(worker: httpx.Client) -> dict[str, Any]:
    report: dict[str, Any] = worker.get("/watch").json()
    return report


def assert_no_block(worker: httpx.Client, late: float = MAX_BLOCK_SECONDS) -> None:
    report, slow = watched(worker), slowness()
    assert report["callback"] < MAX_BLOCK_SECONDS * slow, report
    assert report["late"] < late * slow, report


@pytest.mark.parametrize("name", ANSWERED)
def test_the_largest_body_blocks_nobody(worker: httpx.Client, name: str) -> None:
    watched(worker)
    response = post(worker, ANSWERED[name])
    assert response.status_code == ANSWERED[name].status, response.text[:500]
    assert_no_block(worker)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_body_blocks_nobody_and_is_refused_in_few_words(worker: httpx.Client, name: str) -> None:
    watched(worker)
    response = post(worker, REFUSED[name])
    assert response.status_code == REFUSED[name].status, response.text[:500]
    assert len(response.content) < SMALL_REFUSAL
    assert_no_block(worker)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_longest_document_blocks_nobody(worker: httpx.Client, name: str) -> None:
    watched(worker)
    response = post(worker, DOCUMENTS[name])
    assert response.status_code in {201, 202}, response.text[:500]
    path = f"/documents/{response.json()['id']}"
    try:
        wait_until(
            lambda: worker.get(path, params={"limit": 0}).json()["status"] != "processing", timeout=90, interval=0.2
        )
        worker.get(path, params={"limit": 1000})
        assert_no_block(worker, MAX_BLOCK_BESIDE_THREADS)
    finally:
        worker.delete(path)  # a repetition would find the document known, and read nothing
