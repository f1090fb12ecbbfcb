"""`ragherd ingest` while a worker and the command are killed: each document is stored exactly once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as sync_redis

from scripts import made_documents
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.ingest_process import expected_texts, ingest_process
from tests.support.replies import text
from tests.support.stored_corpus import StoredCorpus
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes
DOCUMENTS = 12


@pytest.fixture
def redis(redis_url: str) -> Iterator[sync_redis.Redis]:
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def service(redis: sync_redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Gunicorn]:
    """Two workers."""
    with stub_process() as stub, gunicorns("api.asgi:app", tmp_path) as begin:
        patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
        shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": stub.base_url, "EMBEDDER": "onnx"}
        yield begin(WORKERS="2", **shared, **patient)


def ready(client: sync_redis.Redis) -> int:
    return sum(client.hget(key, "status") == b"ready" for key in client.scan_iter("rag:doc:????????????????????????"))


def worker_at_work(client: sync_redis.Redis) -> int | None:
    """The process of a worker that has embedded a part of a document."""
    for key in client.scan_iter("rag:doc:*:work"):
        by, done, phase = client.hmget(key, "by", "done", "phase")
        if by is not None and done is not None and phase == b"store":
            pid = client.hget(f"rag:worker:{text(by)}", "pid")
            return int(pid) if pid is not None else None
    return None


def test_a_worker_and_the_command_are_killed_in_mid_ingest_and_nothing_is_lost_or_there_twice(
    service: Gunicorn, redis: sync_redis.Redis, tmp_path: Path
) -> None:
    folder = made_documents.write(tmp_path / "handbooks", range(DOCUMENTS), sections=4)
    command = ingest_process(service.url(), folder)
    victims: list[int] = []

    def found() -> bool:
        victim = worker_at_work(redis)
        victims.extend([] if victim is None else [victim])
        return victim is not None

    wait_until(found, timeout=30, interval=0.002)
    os.kill(victims[-1], signal.SIGKILL)
    wait_until(lambda: ready(redis) >= 2, timeout=30, interval=0.005)
    command.kill()
    command.communicate()
    assert ready(redis) < DOCUMENTS, "the command was killed too late to show anything"

    again = ingest_process(service.url(), folder)
    out, _ = again.communicate(timeout=90)
    assert again.returncode == 0, out
    wait_until(lambda: not redis.zcard("rag:corpus:work"), timeout=30)
    assert StoredCorpus(redis).faults(expected_texts([folder])) == []
    assert victims[-1] not in service.workers()
