"""Measures what metrics and the history cost: the processor time of an exact hit with both, with one, and with neither.

    .venv/bin/python -m scripts.bench_metering

Three workers in one process take turns in random order with the same question, so that other load of the machine
affects all of them alike. There is no HTTP client or server: a real request takes longer, and the shares are smaller. A
busy worker answers as many requests per second as its processor time allows. Metrics are in multiprocess mode, as
under gunicorn. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from unittest.mock import patch

from fastapi import FastAPI

import api.app
from api.embedded.redis_server import embedded_redis
from api.settings import Settings
from tests.stub_ollama import stub_process
from tests.support.service import make_settings

WARM_UP: Final = 200
REQUESTS: Final = 3_000
BATCHES: Final = 60
"""Parts of a run. The interval comes from their medians."""
BODY: Final = json.dumps({"question": "What is the capital of France?"}).encode()
SCOPE: Final[dict[str, Any]] = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/query",
    "raw_path": b"/query", "root_path": "", "scheme": "http", "query_string": b"",
    "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8001),
}  # fmt: skip
BOTH, METRICS, NEITHER = "metrics and history", "metrics", "neither"


class NoMetrics:
    """Stands for `Metrics` and whatever it returns: every call does nothing."""

    def __init__(self, *_: Any) -> None:
        """Takes what `Metrics` takes."""

    def __getattr__(self, _: str) -> NoMetrics:
        return self

    def __call__(self, *_: Any, **__: Any) -> NoMetrics:
        """Does nothing."""
        return self


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        show(asyncio.run(measured(apps(redis.url, stub.base_url))))


def apps(redis_url: str, ollama_url: str) -> dict[str, FastAPI]:
    """Returns the three workers, not started."""

    def settings(*, history: bool) -> Settings:
        return make_settings(redis_url, ollama_url, server={"history_enabled": history})

    made = {BOTH: api.app.create_app(settings(history=True)), METRICS: api.app.create_app(settings(history=False))}
    with patch.multiple(api.app, Metrics=NoMetrics, HttpMetrics=lambda app, **_: app):
        return made | {NEITHER: api.app.create_app(settings(history=False))}


async def measured(workers: dict[str, FastAPI]) -> dict[str, list[int]]:
    """Returns the nanoseconds of processor time of each request, by worker."""
    found: dict[str, list[int]] = {name: [] for name in workers}
    async with AsyncExitStack() as stack:
        states: dict[str, dict[str, Any]] = {}
        for name, app in workers.items():
            opening: Any = app.router.lifespan_context(app)
            states[name] = dict(await stack.enter_async_context(opening))
        for number in range(WARM_UP + REQUESTS):
            for name in random.sample(list(workers), len(workers)):
                before = time.process_time_ns()
                await ask(workers[name], states[name])
                if number >= WARM_UP:
                    found[name].append(time.process_time_ns() - before)
    return found


async def ask(app: Callable[..., Any], state: dict[str, Any]) -> None:
    """Sends one request to a worker. Raises `RuntimeError` if it is not answered."""
    waiting = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Future[None]()
        return waiting.pop()

    async def send(message: dict[str, Any]) -> None:
        if message.get("status", 200) != 200:
            raise RuntimeError(f"status {message['status']}")

    await app({**SCOPE, "state": dict(state)}, receive, send)


def show(found: dict[str, list[int]]) -> None:
    print("| | us of a hit | hits/s, compared with the line below | 95 % interval |")
    print("|---|---|---|---|")
    for name, below in ((BOTH, METRICS), (METRICS, NEITHER), (NEITHER, NEITHER)):
        pairs = zip(medians(found[below]), medians(found[name]), strict=True)
        low, middle, high = interval([without / with_it for without, with_it in pairs])
        change = f"{middle - 1:+.1%} | {low - 1:+.1%} to {high - 1:+.1%}" if name != below else " | "
        print(f"| {name} | {statistics.median(found[name]) / 1000:.0f} | {change} |")


def medians(times: Sequence[int]) -> list[float]:
    size = len(times) // BATCHES
    return [statistics.median(times[start : start + size]) for start in range(0, size * BATCHES, size)]


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and its 95 % bootstrap interval."""
    chance = random.Random(17)
    means = sorted(statistics.fmean(chance.choices(ratios, k=len(ratios))) for _ in range(2_000))
    return means[50], statistics.fmean(ratios), means[1949]


if __name__ == "__main__":
    main()
