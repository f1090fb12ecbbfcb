"""Measures what prefix affinity saves: conversations over three llama.cpp servers, by prefix and by load, in turns.

    .venv/bin/python -m scripts.bench_prefix_affinity

Real llama.cpp servers with a shortened SmolLM2 and four slots each, and two services of two workers. In each round,
each variant serves the same number of users, who talk at the same time, with the same system prompt and pauses. The
texts differ, so that no variant profits from the other. `read again` are the tokens that a server read although one had
read them before in the same conversation. Needs the extras `embedded` and `dev`.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import typer

from api.embedded.redis_server import embedded_redis
from tests.support.gunicorn_process import gunicorns
from tests.support.model_server_process import model_server

BACKENDS: Final = 3
SERVER: Final = (sys.executable, "-m", "scripts.llama_backend")
VARIANTS: Final = {"by load": "0", "by prefix": "2"}
WORDS: Final = (
    *("river", "garden", "engine", "letter", "mountain", "window", "market", "doctor", "summer", "bridge", "paper"),
    *("winter", "coffee", "station", "history", "village", "kitchen", "teacher", "island", "picture", "morning"),
    *("evening", "library", "captain", "forest", "harbor", "music", "science"),
)
SYSTEM_WORDS: Final = 60
TURN_WORDS: Final = 30
ANSWER: Final = 8
"""Tokens of an answer."""
PAUSE: Final = (0.1, 1.0)
"""Shortest and longest time that a user thinks, in seconds."""


@dataclass(slots=True)
class Figures:
    """What one variant did. Times are in seconds."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    read_tokens: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def read_again(self) -> int:
        """Tokens that were read although they had been read before in the conversation."""
        return max(0, self.read_tokens - self.new_tokens)


def main(users: int = 7, turns: int = 6, rounds: int = 3) -> None:
    """Prints a table for each round, and one for all."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        backends = [stack.enter_context(model_server(command=SERVER)) for _ in range(BACKENDS)]
        redis = stack.enter_context(embedded_redis(persistent=False))
        start = stack.enter_context(gunicorns("api.asgi:app", Path(folder)))
        services = {
            variant: start(**_settings(redis.url, backends, number, affinity)).url()
            for number, (variant, affinity) in enumerate(VARIANTS.items())
        }
        totals = {variant: Figures() for variant in VARIANTS}
        for number in range(rounds):
            order = list(services.items())[:: 1 if number % 2 == 0 else -1]
            for variant, url in order:
                asyncio.run(_round(url, backends, totals[variant], f"{variant} {number}", users, turns, number))
            print(f"\nafter round {number + 1}")
            show(totals)


def _settings(redis: str, backends: Sequence[str], number: int, affinity: str) -> dict[str, str]:
    return {
        "REDIS_URL": redis,
        "REDIS_PREFIX": f"bench{number}:",
        "OLLAMA_BASE_URL": ",".join(backends),
        "OLLAMA_PREFIX_AFFINITY": affinity,
        "OLLAMA_WARM_UP": "false",
        **{f"OLLAMA_{wait}_TIMEOUT": "600" for wait in ("FIRST_TOKEN", "COLD_FIRST_TOKEN", "INTER_TOKEN", "TOTAL")},
        "BULKHEAD_MAX_WAIT": "600",
        "LLM_MODEL": "smollm2",
        "EMBEDDER": "onnx",
        "CIRCUIT_BREAKER_ENABLED": "false",
        "WORKERS": "2",
    }


async def _round(
    url: str, backends: Sequence[str], figures: Figures, name: str, users: int, turns: int, seed: int
) -> None:
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        before = await _stats(client, backends)
        system = _system(name)
        talks = (
            _talk(client, url, figures, system, f"{name} {user}", turns, seed * users + user) for user in range(users)
        )
        await asyncio.gather(*talks)
        after = await _stats(client, backends)
    for backend, counts in after.items():
        figures.read_tokens += counts["read"] - before[backend]["read"]
        figures.calls[backend] += counts["calls"] - before[backend]["calls"]


async def _stats(client: httpx.AsyncClient, backends: Sequence[str]) -> dict[str, Counter[str]]:
    return {backend: Counter((await client.get(f"{backend}/stats")).json()) for backend in backends}


def _system(name: str) -> str:
    return f"You are an assistant for the topic {name}. Known facts: {_text(name, SYSTEM_WORDS)}."


def _text(name: str, words: int) -> str:
    return " ".join(random.Random(name).choices(WORDS, k=words))


async def _talk(
    client: httpx.AsyncClient, url: str, figures: Figures, system: str, name: str, turns: int, seed: int
) -> None:
    """Holds one conversation. Pauses depend on `seed` alone."""
    pauses = random.Random(seed)
    messages = [{"role": "system", "content": system}]
    known = 0
    for turn in range(turns):
        await asyncio.sleep(pauses.uniform(*PAUSE))
        messages.append({"role": "user", "content": _text(f"{name} {turn}", TURN_WORDS)})
        answer, end = await _ask(client, url, messages, figures)
        messages.append({"role": "assistant", "content": answer})
        figures.prompt_tokens += end["prompt_eval_count"]
        figures.new_tokens += end["prompt_eval_count"] - known
        known = end["prompt_eval_count"] + end["eval_count"]


async def _ask(
    client: httpx.AsyncClient, url: str, messages: Sequence[Mapping[str, str]], figures: Figures
) -> tuple[str, dict[str, Any]]:
    body = {"model": "smollm2", "messages": messages, "options": {"num_predict": ANSWER, "temperature": 0}}
    started, first, words = time.perf_counter(), 0.0, []
    async with client.stream("POST", f"{url}/api/chat", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            said = orjson.loads(line)
            if "error" in said:
                raise RuntimeError(said["error"])
            words.append(said["message"]["content"])
            first = first or time.perf_counter() - started
    figures.first.append(first)
    figures.whole.append(time.perf_counter() - started)
    return "".join(words), said


def show(totals: Mapping[str, Figures]) -> None:
    """Prints a table in Markdown."""
    print("| | turns | prompt tokens | read | read again | first token p50, p99 | answer p50, p99 | busiest backend |")
    print("|---|---|---|---|---|---|---|---|")
    for variant, one in totals.items():
        busiest = max(one.calls.values()) / one.calls.total()
        counts = (one.prompt_tokens, one.read_tokens, one.read_again)
        numbers = " | ".join(f"{count:,}" for count in counts)
        print(
            f"| {variant} | {len(one.whole)} | {numbers} | {_times(one.first)} | {_times(one.whole)} | {busiest:.0%} |"
        )


def _times(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]
    return f"{statistics.median(ordered):.2f}, {p99:.2f} s"


if __name__ == "__main__":
    typer.run(main)
