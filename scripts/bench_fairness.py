"""Measures what a tenant that floods the fleet costs the others: docs/measurements.md.

    .venv/bin/python -m scripts.bench_fairness [--seconds 12] 2>/dev/null

Two replicas of two workers behind a load balancer answer three tenants, each of which asks for one cached and one new
answer at a time. A fourth tenant then floods them: 48 new answers, 24 long streams and 8 uploads at a time. The script
shows the latencies of the three before, during and after that: without settings, with BULKHEAD_TENANT_SHARE, and with
limits of the tenants. Ollama is a stub that writes 50 words a second and embeds 100 texts a second. Redis is embedded.
Another process sends the flood. Otherwise the flood's own work would delay the clock of the three.
Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import httpx

from api.cancellation import cancel_and_wait
from api.embedded.redis_server import embedded_redis
from tests.stub_ollama import stub_process
from tests.support.balancer import running_balancer
from tests.support.gunicorn_process import gunicorns
from tests.support.waiting import wait_until

TENANTS: Final = ("acme", "globex", "initech")
GREEDY: Final = "greedy"
ADMIN: Final = "key-admin"
SETTINGS: Final = {
    "API_KEYS": ",".join(f"{tenant}=key-{tenant}" for tenant in (*TENANTS, GREEDY)),
    "ADMIN_KEYS": ADMIN,
    "WORKERS": "2",
    "EMBEDDER": "ollama",
    "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": "0.999",
}
CASES: Final = {
    "no setting": {},
    "`BULKHEAD_TENANT_SHARE=0.5`": {"BULKHEAD_TENANT_SHARE": "0.5"},
    "limits": {"RATE_LIMIT_REQUESTS_PER_MINUTE": "300", "CONCURRENT_STREAMS": "2"},
}
PACE: Final = 0.02
"""Seconds between two words of an answer."""
LONG_WORDS: Final = 150
FLOOD: Final = {"miss": 48, "stream": 24, "document": 8}
"""What the greedy tenant does at a time."""
PAUSES: Final = {"hit": 0.5, "miss": 0.5}
"""Seconds between two questions of another tenant."""
BACK_OFF: Final = 0.1
"""Seconds that the greedy tenant waits after a refusal, whatever `Retry-After` says."""
STARTING: Final = 2.0
"""Seconds in which the process of the greedy tenant starts."""
NAMES: Final = ("before", "during", "after")

Latencies = dict[tuple[str, str], list[float]]
"""Milliseconds of the other tenants' answers, by phase and kind."""


class Load:
    """Asks a fleet, and notes what happens in each phase."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._chance = random.Random(7)
        self.phase = ""
        self.latencies: Latencies = defaultdict(list)
        self.failed: Counter[tuple[str, str]] = Counter()
        self.flood: Counter[str] = Counter()

    def _words(self, count: int) -> str:
        return " ".join(f"{self._chance.randrange(36**6):x}" for _ in range(count))

    async def ask_steadily(self, tenant: str, kind: str) -> None:
        """Asks one question after the other, as a tenant that keeps to its share."""
        while True:
            question = "What is cached?" if kind == "hit" else f"What is {self._words(5)}?"
            phase, began = self.phase, time.perf_counter()
            response = await self._post(tenant, question)
            if response.is_success:
                self.latencies[phase, kind].append((time.perf_counter() - began) * 1000)
            else:
                self.failed[phase, kind] += 1
            await asyncio.sleep(PAUSES[kind] * self._chance.uniform(0.5, 1.5))

    async def flood_with(self, kind: str) -> None:
        """Does one thing after the other without a pause."""
        while True:
            status = await self._greedy(kind)
            self.flood[f"{kind} {'answered' if status < 300 else 'refused'}"] += 1
            if status >= 300:
                await asyncio.sleep(BACK_OFF)

    async def _greedy(self, kind: str) -> int:
        if kind == "miss":
            return (await self._post(GREEDY, f"Who is {self._words(8)}?")).status_code
        if kind == "document":
            body = {"title": "Flood", "text": self._words(2000), "tenant": GREEDY}
            headers = {"Authorization": f"Bearer {ADMIN}"}
            return (await self._client.post("/documents", json=body, headers=headers)).status_code
        asked: dict[str, Any] = {"question": self._words(LONG_WORDS), "stream": True}
        headers = {"Authorization": f"Bearer key-{GREEDY}"}
        async with self._client.stream("POST", "/query", json=asked, headers=headers) as response:
            async for _ in response.aiter_bytes():
                pass
            return response.status_code

    async def _post(self, tenant: str, question: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer key-{tenant}"}
        return await self._client.post("/query", json={"question": question}, headers=headers)


def client_of(url: str) -> httpx.AsyncClient:
    """A client without a limit of connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=120, limits=limits)


async def flooded(url: str, seconds: float) -> Counter[str]:
    """Floods a fleet for some seconds. Returns what became of it."""
    async with client_of(url) as client, AsyncExitStack() as stack:
        load = Load(client)
        _starter(stack)([load.flood_with(kind) for kind, number in FLOOD.items() for _ in range(number)])
        await asyncio.sleep(seconds)
        return load.flood


def flood(urls: Sequence[str], seconds: float, result: Connection) -> None:
    """The process of the greedy tenant."""
    with running_balancer() as balancer:
        balancer.send_to(urls)
        result.send(asyncio.run(flooded(balancer.url, seconds)))


async def loaded(url: str, urls: Sequence[str], seconds: float) -> Load:
    """Runs the three phases against the balancer at `url`, which has the replicas `urls` behind it."""
    processes = multiprocessing.get_context("spawn")
    result, sent = processes.Pipe(duplex=False)
    async with client_of(url) as client, AsyncExitStack() as stack:
        load = Load(client)
        load.phase = "warm-up"
        start = _starter(stack)
        start([load.ask_steadily(tenant, kind) for tenant in TENANTS for kind in PAUSES])
        await asyncio.sleep(seconds / 4)
        load.phase = "before"
        await asyncio.sleep(seconds)
        greedy = processes.Process(target=flood, args=(urls, seconds * 5 / 4 + STARTING, sent), daemon=True)
        greedy.start()
        load.phase = "flood begins"
        await asyncio.sleep(seconds / 4 + STARTING)
        load.phase = "during"
        await asyncio.sleep(seconds)
        load.phase = "flood ends"
        load.flood = await asyncio.to_thread(result.recv)
        greedy.join()
        await asyncio.sleep(seconds / 4)
        load.phase = "after"
        await asyncio.sleep(seconds)
        return load


def _starter(stack: AsyncExitStack) -> Callable[[Sequence[Coroutine[Any, Any, None]]], list[asyncio.Task[None]]]:
    def start(work: Sequence[Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(one) for one in work]
        stack.push_async_callback(cancel_and_wait, tasks)
        return tasks

    return start


def measured(settings: dict[str, str], seconds: float) -> Load:
    """Starts a fleet with these settings, and loads it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(embedded_redis(persistent=False))
        ollama = stack.enter_context(stub_process())
        ollama.behaviour(pace=PACE, embed_pace=0.01)
        balancer = stack.enter_context(running_balancer())
        begin = stack.enter_context(gunicorns("api.asgi:app", folder))
        urls = {"REDIS_URL": redis.url, "OLLAMA_BASE_URL": ollama.base_url}
        replicas = [begin(ready=False, **SETTINGS, **urls, **settings) for _ in range(2)]
        for replica in replicas:
            wait_until(replica.is_complete, timeout=90)
        addresses = [one.url() for one in replicas]
        balancer.send_to(addresses)
        return asyncio.run(loaded(balancer.url, addresses, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_fairness")
    parser.add_argument("--seconds", type=float, default=12, help="length of each phase")
    options = parser.parse_args()
    heads = [f"{kind}, {phase}" for kind in PAUSES for phase in NAMES]
    print(f"| | {' | '.join(heads)} | refused |\n|---|{'---|' * (len(heads) + 1)}")
    floods = []
    for name, settings in CASES.items():
        load = measured(settings, options.seconds)
        cells = [_cell(load.latencies[phase, kind]) for kind in PAUSES for phase in NAMES]
        print(f"| {name} | {' | '.join(cells)} | {load.failed.total()} |", flush=True)
        floods.append(f"{name}: {', '.join(f'{what} {count}' for what, count in sorted(load.flood.items()))}")
    print("\nThe greedy tenant:", *floods, sep="\n")


def _cell(latencies: Sequence[float]) -> str:
    """The median and the 99th percentile, in milliseconds, and the number."""
    if len(latencies) < 2:
        return "-"
    return f"{statistics.median(latencies):.0f} / {statistics.quantiles(latencies, n=100)[98]:.0f} ({len(latencies)})"


if __name__ == "__main__":
    main()
