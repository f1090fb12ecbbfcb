"""Measures what metrics, the history, the access log and traces cost an exact hit.

    .venv/bin/python -m scripts.bench_metering 2>/dev/null

First two services over HTTP in turns, one with metrics and history and one without: the hits per second of processor
time of each worker. A busy worker answers as many per second. Needs `wrk` (Debian: apt install wrk).

Then the processor time of a hit in one process, without HTTP client and server. Five workers take turns in random order
with the same question. A real request takes longer, and the shares are smaller.

So other load of the machine affects all alike. The middleware that times requests is always there: the access log needs
it.

Metrics are in multiprocess mode, as under gunicorn. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from fastapi import FastAPI

import api.app
from api.embedded.redis_server import embedded_redis
from api.settings import Settings, load_settings
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
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
TRACES, ACCESS = "traces, access log, history, metrics", "access log, history, metrics"
HISTORY, METRICS, NONE = "history, metrics", "metrics", "none"
NO_COLLECTOR: Final = "http://127.0.0.1:9"
ROUNDS: Final = 40
SECONDS: Final = 1
CONNECTIONS: Final = 16
SCRIPT: Final = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
"""


class NoMetrics:
    """Stands for `Metrics`: every method does nothing."""

    running = 0

    def __init__(self, *_: Any) -> None:
        """Takes what `Metrics` takes."""

    def __getattr__(self, name: str) -> Any:
        made = NoMetrics() if name == "breakers" else _nothing
        setattr(self, name, made)
        return made


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


def without_metrics(settings: Settings) -> FastAPI:
    """Returns a worker that counts nothing."""
    with patch.multiple(api.app, Metrics=NoMetrics):
        return api.app.create_app(settings)


def unmetered() -> FastAPI:
    """What gunicorn loads."""
    return without_metrics(load_settings())


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed (Debian: apt install wrk)")
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        show_rates(over_http(redis.url, stub.base_url, Path(folder)))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        show(asyncio.run(measured(apps(redis.url, stub.base_url))))


# -- over HTTP ---------------------------------------------------------------------------------------------------------


Round = tuple[float, float]
"""Hits per second of processor time, with and without."""


def over_http(redis_url: str, ollama_url: str, folder: Path) -> list[Round]:
    """Runs all rounds."""
    settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama_url, "METRICS_PORT": "0"}
    script = folder / "hit.lua"
    script.write_text(SCRIPT % BODY.decode())
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        metered = stack.enter_context(gunicorns("api.asgi:app", folders[0]))(**settings)
        bare = stack.enter_context(gunicorns("scripts.bench_metering:unmetered()", folders[1]))(
            HISTORY_ENABLED="false", **settings
        )
        return [in_turns(script, metered, bare) for _ in range(ROUNDS + 1)][1:]  # the first warms up


def in_turns(script: Path, metered: Gunicorn, bare: Gunicorn) -> Round:
    """Loads one, the other twice, and the first again: a change of the machine's speed then affects both."""
    runs = [(service, *loaded(script, service)) for service in (metered, bare, bare, metered)]
    with_it, without = (
        sum(hits for one, hits, _ in runs if one is service) / sum(used for one, _, used in runs if one is service)
        for service in (metered, bare)
    )
    return with_it, without


def loaded(script: Path, service: Gunicorn) -> tuple[int, float]:
    """Returns the hits, and the processor time of the worker. Raises `AssertionError` if one was not answered."""
    [worker] = service.workers()
    before = processor_seconds(worker)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), f"{service.url()}/query"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = processor_seconds(worker) - before
    assert "Non-2xx" not in output, output
    assert "Socket errors" not in output, output
    count = re.search(r"(\d+) requests in", output)
    assert count, output
    return int(count[1]), used


def processor_seconds(process: int) -> float:
    """Returns the processor time that the threads of a process used."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def show_rates(rounds: Sequence[Round]) -> None:
    low, middle, high = interval([metered / bare for metered, bare in rounds])
    print("| | hits per second of processor time | with, compared with without | 95 % interval |")
    print("|---|---|---|---|")
    change = f"{middle - 1:+.1%} | {low - 1:+.1%} to {high - 1:+.1%}"
    print(f"| with metrics and history | {statistics.median(one for one, _ in rounds):.0f} | {change} |")
    print(f"| without | {statistics.median(one for _, one in rounds):.0f} | | |\n")


# -- in one process ----------------------------------------------------------------------------------------------------


def apps(redis_url: str, ollama_url: str) -> dict[str, FastAPI]:
    """Returns the five workers, not started. The collector of traces is down."""

    def settings(*, history: bool = False, access_log: bool = False, endpoint: str | None = None) -> Settings:
        server = {"history_enabled": history, "access_log": access_log}
        tracing = {"otel_exporter_otlp_endpoint": endpoint}
        return make_settings(redis_url, ollama_url, server=server, tracing=tracing)

    return {
        TRACES: api.app.create_app(settings(history=True, access_log=True, endpoint=NO_COLLECTOR)),
        ACCESS: api.app.create_app(settings(history=True, access_log=True)),
        HISTORY: api.app.create_app(settings(history=True)),
        METRICS: api.app.create_app(settings()),
        NONE: without_metrics(settings()),
    }


async def measured(workers: dict[str, FastAPI]) -> dict[str, list[int]]:
    """Returns the nanoseconds of processor time of each request, by worker."""
    found: dict[str, list[int]] = {name: [] for name in workers}
    async with AsyncExitStack() as stack:
        states = await started(stack, workers)
        for number in range(WARM_UP + REQUESTS):
            for name in random.sample(list(workers), len(workers)):
                before = time.process_time_ns()
                await ask(workers[name], states[name])
                if number >= WARM_UP:
                    found[name].append(time.process_time_ns() - before)
    return found


async def started(stack: AsyncExitStack, workers: Mapping[str, FastAPI]) -> dict[str, dict[str, Any]]:
    """Starts the workers, and returns their states."""
    states: dict[str, dict[str, Any]] = {}
    for name, app in workers.items():
        lifespan: Any = app.router.lifespan_context(app)
        states[name] = dict(await stack.enter_async_context(lifespan))
    return states


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
    for name, below in (*pairwise(found), (NONE, NONE)):
        pairs = zip(medians(found[below]), medians(found[name]), strict=True)
        low, middle, high = interval([without / with_it for without, with_it in pairs])
        change = f"{middle - 1:+.1%} | {low - 1:+.1%} to {high - 1:+.1%}" if name != below else " | "
        print(f"| {name} | {statistics.median(found[name]) / 1000:.0f} | {change} |")


def medians(times: Sequence[int]) -> list[float]:
    size = len(times) // BATCHES
    return [statistics.median(times[start : start + size]) for start in range(0, size * BATCHES, size)]


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and its 95 % bootstrap interval."""
    chance = random.Random(17)
    sampled = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2_000))
    return sampled[50], statistics.median(ratios), sampled[1949]


if __name__ == "__main__":
    main()
