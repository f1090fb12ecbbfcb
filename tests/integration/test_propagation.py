"""How soon a change reaches every worker of two replicas, while they answer other questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis as sync_redis

from tests.stub_ollama import stub_process
from tests.support.each_worker import each_worker, is_gone, judged_bad, level, published, seconds_until_all
from tests.support.gunicorn_process import gunicorns
from tests.support.load import constant_load

pytestmark = pytest.mark.processes

ROUNDS = 7
QUESTION, COPY = "Who approves my holiday in week {}?", "my holiday in week {}, who approves?"
BUSY = {"question": "Where is the canteen?"}
Workers = Mapping[str, httpx.Client]


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
    one = next(iter(workers.values()))
    seconds = []
    for number in range(ROUNDS):
        wanted = 1 - number % 2

        def shows(client: httpx.Client, wanted: int = wanted) -> bool:
            return level(client) == wanted

        seconds.append(seconds_until_all(workers, shows, partial(published, redis_url, one, wanted)))
    assert min(seconds) < 0.2, seconds  # others may have the processor; by polling alone it would be about 0.8


def test_a_bad_answer_and_its_copy_are_gone_on_all_workers_within_100_ms(workers: Workers) -> None:
    seconds = []
    clients = list(workers.values())
    for number in range(ROUNDS):
        one, other = clients[number % 4], clients[(number + 1) % 4]
        questions = [QUESTION.format(number), COPY.format(number)]
        answered = [
            one.post("/query", json={"question": asked}, headers={"Cache-Control": "no-cache"}).json()
            for asked in questions
        ]
        assert len({one["cache"]["entry"] for one in answered}) == 2
        vote = partial(judged_bad, other, answered[0]["request_id"])
        seconds.append(seconds_until_all(workers, partial(is_gone, questions), vote))
    assert min(seconds) < 0.1, seconds
