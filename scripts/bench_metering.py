"""Measures what metrics and the history cost: the processor time of a request with both, with one, and with neither.

    .venv/bin/python -m scripts.bench_metering

Three services with one worker each answer the same exact hits in turn, in one run, so that other load of the machine
affects all of them alike. A busy worker answers as many requests per second as its processor time allows, so the ratio
of the times is the ratio of the rates. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from api.embedded.redis_server import embedded_redis
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns

REQUESTS: Final = 1_000
ROUNDS: Final = 15
CLIENTS: Final = 8
QUESTION: Final = "What is the capital of France?"
BOTH, METRICS, NEITHER = "metrics and history", "metrics", "neither"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        settings = {"REDIS_URL": redis.url, "OLLAMA_BASE_URL": stub.base_url, "EMBEDDER": "onnx", "WORKERS": "1"}
        with gunicorns("api.asgi:app", Path(folder)) as start:
            services = {BOTH: start(**settings), METRICS: start(**settings, HISTORY_ENABLED="false")}
            unmetered = Path(folder, "unmetered")
            unmetered.mkdir()
            with gunicorns("scripts.unmetered_app:app", unmetered) as start_unmetered:
                services[NEITHER] = start_unmetered(**settings, HISTORY_ENABLED="false")
                show(asyncio.run(measured(services)))


async def measured(services: dict[str, Gunicorn]) -> dict[str, list[float]]:
    """Returns the microseconds of a request in each round, by service."""
    found: dict[str, list[float]] = {name: [] for name in services}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for number in range(ROUNDS + 1):
            for name, service in random.sample(list(services.items()), len(services)):
                before = busy_ns(service.workers())
                await ask(client, f"{service.url()}/query")
                if number:  # the first round warms up
                    found[name].append((busy_ns(service.workers()) - before) / 1000 / REQUESTS)
    return found


async def ask(client: httpx.AsyncClient, url: str) -> None:
    left = iter(range(REQUESTS))

    async def some() -> None:
        for _ in left:
            (await client.post(url, json={"question": QUESTION})).raise_for_status()

    await asyncio.gather(*(some() for _ in range(CLIENTS)))


def busy_ns(processes: set[int]) -> int:
    """Returns the processor time of the processes so far, in nanoseconds."""
    tasks = [task for pid in processes for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def show(found: dict[str, list[float]]) -> None:
    print("| | us of a request | requests/s, compared with neither |")
    print("|---|---|---|")
    for name, times in found.items():
        low, middle, high = interval([base / time for base, time in zip(found[NEITHER], times, strict=True)])
        change = "" if name == NEITHER else f"{middle - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"
        print(f"| {name} | {statistics.median(times):.0f} | {change} |")


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and its 95 % bootstrap interval."""
    chance = random.Random(17)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2_000))
    return medians[50], statistics.median(ratios), medians[1949]


if __name__ == "__main__":
    main()
