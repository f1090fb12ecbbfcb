"""Measures the latency that the service adds to a model's answer: a miss compared with a direct call, in one run.

    .venv/bin/python -m scripts.bench_miss

The model is a stub that answers immediately, so nearly all of the time is overhead. Every question is new: it passes
both cache tiers, the embedder, bulkhead, breaker and pool, and its answer is stored. One worker, with a bulkhead and a
pool as large as the load.

The second table shows what a miss costs whose answer can be compared with those of ten similar questions: without
comparing, as the service does it in the long run, and if it compared every miss. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from api.embedded.redis_server import embedded_redis
from scripts.costs.fleets import cpu_seconds
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns

REQUESTS = 400
SIMILAR, PER_SECOND = 300, 25
VERBS = ("reset", "replace", "find", "clean", "return", "charge", "update", "lock")
OWNERS = ("my", "our", "a", "the old", "the new", "your")
THINGS = ("phone", "badge", "laptop", "camera", "printer", "key", "account", "car")
TIMES = ("at home", "at work", "on a trip", "in the office", "after a repair", "before the holidays")
NO_HITS = {"EMBEDDER": "onnx", "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": "1"}
COMPARING = {"off": "nothing compared", "bounded": "as the service does", "every": "every miss compared"}
CLIENTS = (1, 32)
ROUNDS = 3
NUMBERS = itertools.count()
Call = Callable[[httpx.AsyncClient], Awaitable[None]]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, embedded_redis(persistent=False) as redis, stub_process() as stub:
        wide = str(max(CLIENTS) * 2)
        settings = {
            "REDIS_URL": redis.url,
            "OLLAMA_BASE_URL": stub.base_url,
            "WORKERS": "1",
            "CONNECTION_POOL_MAX_SIZE": wide,
            "BULKHEAD_MAX_CONCURRENT": wide,
        }
        with gunicorns("api.asgi:app", Path(folder)) as start:
            urls = {kind: start(**settings, EMBEDDER=kind).url() for kind in ("onnx", "ollama")}
            calls: dict[str, Call] = {"direct": direct(stub.base_url)}
            calls |= {f"miss, EMBEDDER={kind}": miss(url) for kind, url in urls.items()}
            asyncio.run(compare(calls))
        with gunicorns("scripts.comparing_app:app", Path(folder)) as start:
            services = {kind: start(**settings, **NO_HITS, BENCH_COMPARING=kind) for kind in COMPARING}
            show_costs(services)


def show_costs(services: Mapping[str, Gunicorn]) -> None:
    """Prints the CPU time of a miss with similar questions, for each limit on comparing."""
    print(f"\n{PER_SECOND} misses a second, median of {ROUNDS} rounds, one worker, CPU of a miss in milliseconds")
    found: dict[str, list[float]] = {kind: [] for kind in services}
    questions = {kind: similar_questions() for kind in services}
    for _ in range(ROUNDS + 1):  # the first fills the cache
        for seed, (kind, service) in enumerate(services.items()):
            before = cpu_seconds(service.workers())
            asyncio.run(paced(service.url(), list(itertools.islice(questions[kind], SIMILAR)), seed))
            found[kind].append((cpu_seconds(service.workers()) - before) / SIMILAR * 1000)
    for kind, values in found.items():
        print(f"{COMPARING[kind]:24}{statistics.median(values[1:]):18.1f}")


def similar_questions() -> Iterator[str]:
    """Yields questions that differ in words. The stub's answer repeats the question."""
    for verb, owner, thing, when in itertools.product(VERBS, OWNERS, THINGS, TIMES):
        yield f"How do I {verb} {owner} {thing} {when}?"


async def paced(url: str, questions: Sequence[str], seed: int) -> None:
    """Asks at a constant rate. The seed keeps the services apart: each has a scope of the cache."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client, asyncio.TaskGroup() as group:
        for question in questions:
            group.create_task(missed(client, url, question, seed))
            await asyncio.sleep(1 / PER_SECOND)


async def missed(client: httpx.AsyncClient, url: str, question: str, seed: int) -> None:
    response = await client.post(f"{url}/query", json={"question": question, "options": {"seed": seed}})
    assert response.json()["cache"]["status"] == "miss", response.text


def direct(url: str) -> Call:
    """Returns a streamed call to Ollama's own API, as the service makes it."""

    async def call(client: httpx.AsyncClient) -> None:
        messages = [{"role": "user", "content": f"Question {next(NUMBERS)}?"}]
        response = await client.post(f"{url}/api/chat", json={"model": "llama3.2", "messages": messages})
        assert b'"done": true' in response.content.replace(b'"done":true', b'"done": true'), response.text

    return call


def miss(url: str) -> Call:
    """Returns a call with a new question."""

    async def call(client: httpx.AsyncClient) -> None:
        number = next(NUMBERS)
        question = f"{number * 7919 % 10007} {'abcdefghij'[number % 10] * 5} question {number}?"
        response = await client.post(f"{url}/query", json={"question": question, "options": {"seed": number}})
        assert response.json()["cache"]["status"] == "miss", response.text

    return call


async def compare(calls: dict[str, Call]) -> None:
    print(f"{REQUESTS} requests per round, median of {ROUNDS} rounds, one worker, milliseconds")
    print(f"{'':24}" + "".join(f"{f'{n} clients: p50':>18}{'p99':>8}" for n in CLIENTS))
    rows: dict[str, list[str]] = {name: [] for name in calls}
    for clients in CLIENTS:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                rounds[name].append(await load(call, clients))
        for name, measured in rounds.items():
            p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
            rows[name].append(f"{p50:18.1f}{p99:8.1f}")
    for name, cells in rows.items():
        print(f"{name:24}" + "".join(cells))


async def load(call: Call, clients: int) -> tuple[float, float]:
    """Makes `call` with `clients` in parallel. Returns the 50th and 99th percentile."""
    times: list[float] = []
    left = itertools.repeat(None, REQUESTS)

    async def one() -> None:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            for _ in left:
                started = time.perf_counter()
                await call(client)
                times.append((time.perf_counter() - started) * 1000)

    await asyncio.gather(*(one() for _ in range(clients)))
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    main()
