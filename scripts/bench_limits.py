"""Measures what limits on requests and tokens cost a hit.

    .venv/bin/python -m scripts.bench_limits 2>/dev/null

Workers in one process take turns in random order with the same question, without HTTP client and server. So other load
of the machine affects all alike. The time is the processor's, of this process and of Redis's main thread. No worker
keeps copies of answers: with limits on hits it may not use them.

Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from typing import Any, Final

from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.embedded.redis_server import embedded_redis
from scripts.bench_metering import ask, interval, medians, started
from tests.stub_ollama import stub_process
from tests.support.service import make_settings

WARM_UP, REQUESTS, FOR_REDIS = 200, 4_000, 1_500
NONE: Final = "none"
LIMITS: Final[dict[str, dict[str, Any]]] = {
    NONE: {},
    "requests": {"rate_limit_requests_per_minute": 1_000_000},
    "requests, tokens, tokens of a day": {
        "rate_limit_requests_per_minute": 1_000_000,
        "rate_limit_tokens_per_minute": 1_000_000_000,
        "token_budget_per_day": 1_000_000_000,
    },
    "requests, hits are free": {"rate_limit_requests_per_minute": 1_000_000, "rate_limit_free_hits": True},
}
Measured = tuple[dict[str, list[int]], dict[str, float]]
"""By limits: nanoseconds of each request in this process, and microseconds of a request in Redis."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        settings = {
            name: make_settings(redis.url, stub.base_url, access=access, cache={"near_bytes": 0})
            for name, access in LIMITS.items()
        }
        apps = {name: create_app(one) for name, one in settings.items()}
        show(*asyncio.run(measured(apps, redis.url)))


async def measured(apps: dict[str, FastAPI], redis_url: str) -> Measured:
    """Asks each worker in turn, and then one after the other for Redis's time."""
    here: dict[str, list[int]] = {name: [] for name in apps}
    async with AsyncExitStack() as stack:
        states = await started(stack, apps)
        for number in range(WARM_UP + REQUESTS):
            for name in random.sample(list(apps), len(apps)):
                before = time.process_time_ns()
                await ask(apps[name], states[name])
                if number >= WARM_UP:
                    here[name].append(time.process_time_ns() - before)
        redis = stack.enter_context(Redis.from_url(redis_url))
        in_redis: dict[str, list[float]] = {name: [] for name in apps}
        for _ in range(3):
            for name, app in apps.items():
                before_redis = _seconds(redis)
                for _ in range(FOR_REDIS):
                    await ask(app, states[name])
                in_redis[name].append((_seconds(redis) - before_redis) / FOR_REDIS * 1e6)
    return here, {name: statistics.median(found) for name, found in in_redis.items()}


def _seconds(redis: Redis) -> float:
    used: Any = redis.info("cpu")
    return float(used["used_cpu_user_main_thread"]) + float(used["used_cpu_sys_main_thread"])


def show(here: dict[str, list[int]], in_redis: dict[str, float]) -> None:
    print("| limits | us of a hit in a worker | more | 95 % interval | us in Redis | more |")
    print("|---|---|---|---|---|---|")
    without = medians(here[NONE])
    for name, times in here.items():
        pairs = zip(without, medians(times), strict=True)
        low, middle, high = interval([(with_it - before) / 1000 for before, with_it in pairs])
        worker = f"{statistics.median(times) / 1000:.0f} | {middle:.0f} | {low:.0f} to {high:.0f}"
        print(f"| {name} | {worker} | {in_redis[name]:.0f} | {in_redis[name] - in_redis[NONE]:.0f} |")


if __name__ == "__main__":
    main()
