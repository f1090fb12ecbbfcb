"""Measures questions over HTTP with one worker, its Redis, and a model that answers immediately."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from scripts.costs.fleets import STARTING_SECONDS, cpu_seconds
from scripts.costs.server import Server
from tests.stub_ollama import StubProcess
from tests.support.gunicorn_process import gunicorns
from tests.support.waiting import wait_until

CONCURRENCY: Final = 16
TIMES: Final = 1500
MISSES: Final = 400
QUESTION: Final = "What is the capital of France?"
OPENINGS: Final = ("", "Hello, ", "Please tell me: ", "Well, ", "Hi, ", "Hey, ", "Good morning, ", "Tell me, ")
ASKED: Final = ("which city is the capital of France", "what city is the capital of France", "the capital of France is")
CLOSINGS: Final = ("?", " please?", ", then?", ", thanks?", " now?", ", may I ask?")
SHORT, LONG = 20, 220
"""Words in an answer, one token each."""


def measure(url: str, stub: StubProcess, server: Server) -> dict[str, dict[str, Any]]:
    """Measures each kind of outcome of a question."""
    server.client.flushall()
    with tempfile.TemporaryDirectory() as folder, gunicorns("api.asgi:app", Path(folder)) as begin:
        settings = {"REDIS_URL": url, "OLLAMA_BASE_URL": stub.base_url, "EMBEDDER": "onnx", "WORKERS": "1"}
        gunicorn = begin(ready=False, **settings, BULKHEAD_MAX_CONCURRENT="64", SEMANTIC_CACHE_MAX_SIZE="5000")
        wait_until(lambda: server.client.zcard("rag:workers") == 1, timeout=STARTING_SECONDS)
        run = _Run(gunicorn.url(), gunicorn.workers(), server)
        stub.behaviour(answer=" ".join(["word"] * SHORT))
        run.ask([QUESTION])
        idle = run.idle()
        found = {"exact_hit": run.cost([QUESTION] * TIMES, {"exact"}, idle)}
        near = [f"{a}{b}{c}" for a, b, c in itertools.product(OPENINGS, ASKED, CLOSINGS)]
        found["semantic_hit"] = run.cost(near, {"semantic", "exact", None}, idle)
        hits = [one for one, kind in run.kinds.items() if kind == "semantic"]
        found["semantic_hit_again"] = run.cost(list(itertools.islice(itertools.cycle(hits), TIMES)), {"semantic"}, idle)
        found["miss"] = run.cost([_unlike(number) for number in range(MISSES)], {None}, idle)
        stub.behaviour(answer=" ".join(["word"] * LONG))
        found["miss_long"] = run.cost([_unlike(number) for number in range(MISSES, 2 * MISSES)], {None}, idle)
        stub.behaviour()
    found["miss"]["tokens"], found["miss_long"]["tokens"] = SHORT, LONG
    return found


def _unlike(number: int) -> str:
    return f"How do I reset device number {number * 7919} of series {number * 104729 % 9973}?"


class _Run:
    def __init__(self, url: str, workers: set[int], server: Server) -> None:
        self._url = url
        self._workers = workers
        self._server = server
        self.kinds: dict[str, str | None] = {}

    def idle(self, seconds: float = 5.0) -> tuple[float, float, float]:
        """Returns microseconds and commands of Redis, and microseconds of the worker, per idle second."""
        before, worked = self._server.sample(), cpu_seconds(self._workers)
        time.sleep(seconds)
        spent = self._server.since(before)
        worker = cpu_seconds(self._workers) - worked
        return spent.cpu_us / spent.seconds, spent.calls.total() / spent.seconds, worker * 1e6 / spent.seconds

    def ask(self, questions: Sequence[str]) -> None:
        asyncio.run(self._ask(questions))

    async def _ask(self, questions: Sequence[str]) -> None:
        left = iter(questions)
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client:

            async def some() -> None:
                for question in left:
                    reply = await client.post("/query", json={"question": question})
                    self.kinds[question] = reply.raise_for_status().json()["cache"]["kind"]

            await asyncio.gather(*(some() for _ in range(CONCURRENCY)))

    def cost(
        self, questions: Sequence[str], kinds: set[str | None], idle: tuple[float, float, float]
    ) -> dict[str, Any]:
        """Returns the cost per question without the idle load. `kinds`: the allowed cache outcomes."""
        before, worked = self._server.sample(), cpu_seconds(self._workers)
        self.ask(questions)
        spent, worker = self._server.since(before), cpu_seconds(self._workers) - worked
        assert {self.kinds[question] for question in questions} <= kinds
        times, (server_us, commands, worker_us) = len(questions), idle
        hits = sum(self.kinds[question] is not None for question in questions)
        return {
            "questions": times,
            "hits": hits,
            "rate": round(times / spent.seconds),
            "server_us": round((spent.cpu_us - server_us * spent.seconds) / times, 1),
            "commands": round((spent.calls.total() - commands * spent.seconds) / times, 2),
            "bytes_in": round(spent.bytes_in / times),
            "bytes_out": round(spent.bytes_out / times),
            "worker_us": round((worker * 1e6 - worker_us * spent.seconds) / times),
        }
