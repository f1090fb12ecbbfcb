"""How soon a change reaches every worker of two replicas, while they answer other questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as sync_redis

from scripts.bench_propagation import BUSY, Workers, after_a_bad_vote, after_a_new_level
from tests.stub_ollama import stub_process
from tests.support.each_worker import each_worker
from tests.support.gunicorn_process import gunicorns
from tests.support.load import constant_load

pytestmark = pytest.mark.processes

ROUNDS = 7


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[Workers]:
    """Returns a client of each of four workers, in two replicas, under load."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with stub_process() as stub, gunicorns("api.asgi:app", tmp_path) as begin:
        stub.behaviour(answer="Your manager.", path="/api/chat")
        settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": stub.base_url, "WORKERS": "2", "REDIS_TIMEOUT": "1"}
        urls = [begin(**settings, REDIS_REQUEST_BUDGET="2").url() for _ in range(2)]
        with (
            each_worker(urls, 4) as clients,
            constant_load(lambda client: client.post(f"{urls[0]}/query", json=BUSY), 1) as load,
            constant_load(lambda client: client.post(f"{urls[1]}/query", json=BUSY), 1),
        ):
            yield clients
        assert load.answered > 10
        assert not load.failures


def test_what_the_fleet_learns_reaches_all_workers_within_200_ms(workers: Workers, redis_url: str) -> None:
    seconds = [after_a_new_level(workers, redis_url, 1 - number % 2) for number in range(ROUNDS)]
    assert min(seconds) < 0.2, seconds  # others may have the processor; by polling alone it would be about 0.8


def test_a_bad_answer_and_its_copy_are_gone_on_all_workers_within_100_ms(workers: Workers) -> None:
    seconds = [after_a_bad_vote(workers, number) for number in range(ROUNDS)]
    assert min(seconds) < 0.1, seconds
