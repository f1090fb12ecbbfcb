"""Measures how soon a change reaches every worker of a fleet: two replicas with two workers each, under load.

    .venv/bin/python -m scripts.bench_propagation [--rounds 40]

- `bad vote`: until no worker serves the judged answer and its copy from the cache any more.
- `level`: until every worker shows what the worker that learns has published.

Each worker is asked repeatedly. The time runs from the vote or the write of the level until the last request was sent
that did not show the change yet. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import typer

from api.embedded.redis_server import embedded_redis
from tests.stub_ollama import stub_process
from tests.support.each_worker import each_worker, is_gone, judged_bad, level, published, seconds_until_all
from tests.support.gunicorn_process import gunicorns
from tests.support.load import constant_load

QUESTION, COPY = "Who approves my holiday in week {}?", "my holiday in week {}, who approves?"
BUSY = {"question": "Where is the canteen?"}
FRESH = {"Cache-Control": "no-cache"}
Workers = Mapping[str, httpx.Client]


def main(rounds: Annotated[int, typer.Option(help="Changes of each kind.")] = 40) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        stub.behaviour(answer="Your manager.", path="/api/chat")
        with gunicorns("api.asgi:app", Path(folder)) as start:
            settings = {"REDIS_URL": redis.url, "OLLAMA_BASE_URL": stub.base_url, "WORKERS": "2"}
            urls = [start(**settings).url() for _ in range(2)]
            with (
                each_worker(urls, 4) as workers,
                constant_load(lambda client: client.post(f"{urls[0]}/query", json=BUSY), 1) as one,
                constant_load(lambda client: client.post(f"{urls[1]}/query", json=BUSY), 1) as other,
            ):
                began = time.monotonic()
                found = {
                    "bad vote": [after_a_bad_vote(workers, number) for number in range(rounds)],
                    "level": [after_a_new_level(workers, redis.url, 1 - number % 2) for number in range(rounds)],
                }
                seconds = time.monotonic() - began
            print(f"{(one.answered + other.answered) / seconds:.0f} other questions per second")
    for name, values in found.items():
        cuts = statistics.quantiles(values, n=100)
        print(f"{name:10} p50 {cuts[49] * 1000:6.0f} ms   p99 {cuts[98] * 1000:6.0f} ms")


def after_a_bad_vote(workers: Workers, number: int) -> float:
    """Returns the seconds in which any worker still served an answer or its copy."""
    clients = list(workers.values())
    one, other = clients[number % 4], clients[(number + 1) % 4]
    questions = [QUESTION.format(number), COPY.format(number)]
    answered = [one.post("/query", json={"question": asked}, headers=FRESH).json() for asked in questions]
    vote = partial(judged_bad, other, answered[0]["request_id"])
    return seconds_until_all(workers, partial(is_gone, questions), vote)


def after_a_new_level(workers: Workers, redis_url: str, wanted: int) -> float:
    """Returns the seconds in which any worker still had the former level."""
    one = next(iter(workers.values()))
    return seconds_until_all(
        workers, lambda client: level(client) == wanted, partial(published, redis_url, one, wanted)
    )


if __name__ == "__main__":
    typer.run(main)
