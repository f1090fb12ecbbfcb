"""What a miss adds to a direct call of the model, and what passing on a token costs.

The model's stand-in answers at once, so nearly all of the time is overhead. Each question is new and has a seed of its
own, so no answer is found for it. The direct calls come from the same load generator, which takes less time than a full
HTTP client: with one, the direct call would be slower and the service would look better.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from scripts.benchmarks import figures
from scripts.benchmarks.load import ROOT, Load
from scripts.benchmarks.place import Place, Server, cpu_seconds

MODEL: Final = "llama3.2"
STREAMS: Final = 16
PACE: Final = 0.01
"""Seconds between two tokens of a stream, so that each comes alone, as a model sends them."""
IDLE_SECONDS: Final = 3.0
NUMBERS: Final = itertools.count(1)
_WORDS: Final = [
    line.split()
    for line in (
        "rent buy sell repair return insure register deliver clean paint store borrow move inspect order",
        "London Paris Berlin Madrid Rome Vienna Oslo Dublin Lisbon Prague Athens Warsaw Geneva Bristol",
        "small large heavy light green yellow purple broken wooden modern old used cheap plain round",
        "bicycle table piano printer camera window boat tractor mirror carpet lamp fridge tent guitar sofa helmet",
    )
]
"""What is done, where, and to what kind of which thing."""


def misses(place: Place, service: Server, rounds: int, requests: dict[str, int]) -> dict[str, Any]:
    """Measures misses and direct calls in turns, for each number of clients.

    The question's embedding is remembered: the same question was asked before with another seed. What is left of it is
    taken off by the answer's own timings.
    """
    found: dict[str, Any] = {clients: {"direct": [], "miss": []} for clients in requests}
    place.stub.behaviour()
    for _ in range(rounds):
        for clients, count in requests.items():
            numbers = list(itertools.islice(NUMBERS, count))
            url, wide = f"{service.url}/query", int(clients)
            place.measured(service, Load(url, [_query(number, number) for number in numbers]))
            direct = Load(f"{place.stub.base_url}/api/chat", [_chat(number) for number in numbers], wide)
            found[clients]["direct"].append(place.measured(service, direct))
            bodies = [_query(number, -number) for number in numbers]
            miss = Load(url, bodies, wide, expect='"status":"miss"', apart="embed")
            found[clients]["miss"].append(place.measured(service, miss))
    return found


def new_questions(count: int) -> list[str]:
    """Returns requests that no cache can answer, whose embedding is not known either."""
    return [_query(number, number) for number in itertools.islice(NUMBERS, count)]


def _question(number: int) -> str:
    """Returns a question in English, so that the cache searches by meaning. All numbers below 50,400 differ in it."""
    words = []
    for choices in _WORDS:
        number, chosen = divmod(number, len(choices))
        words.append(choices[chosen])
    deed, place, look, thing = words
    return f"How do I {deed} a {look} {thing} in {place}?"


def _query(number: int, seed: int, **fields: Any) -> str:
    return json.dumps({"question": _question(number), "options": {"seed": seed}, **fields})


def _chat(number: int, **fields: Any) -> str:
    messages = [{"role": "user", "content": _question(number)}]
    return json.dumps({"model": MODEL, "messages": messages, "options": {"seed": number}, **fields})


# -- Streams -----------------------------------------------------------------------------------------------------------


def streams(place: Place, service: Server, rounds: int, lengths: tuple[int, int]) -> dict[str, Any]:
    """Measures the CPU time of one more token in a stream: passed on in two forms, and read by httpx."""
    kinds = {figures.QUERY_STREAM: "/query", figures.CHAT_STREAM: "/api/chat", figures.HTTPX_STREAM: None}
    found: dict[str, Any] = {name: [] for name in kinds}
    idle_us = _idle(service)
    for _ in range(rounds):
        for name, path in kinds.items():
            short, long = (_streamed(place, service, path, tokens) for tokens in lengths)
            token_us = figures.marginal(long, short, idle_us if path else 0.0)
            found[name].append({"token_us": token_us})
    place.stub.behaviour()
    return found


def _idle(service: Server) -> float:
    """Returns the CPU microseconds that a worker takes per second without a request."""
    before = cpu_seconds(service.pids)
    time.sleep(IDLE_SECONDS)
    return (cpu_seconds(service.pids) - before) * 1e6 / IDLE_SECONDS


def _streamed(place: Place, service: Server, path: str | None, tokens: int) -> dict[str, float]:
    place.stub.behaviour(answer=" ".join(["word"] * tokens), pace=PACE)
    numbers = list(itertools.islice(NUMBERS, STREAMS))
    if path is None:
        url, bodies = f"{place.stub.base_url}/api/chat", [_chat(number) for number in numbers]
        return {**_read_by_httpx(url, bodies), "tokens": tokens}
    form: Callable[[int], str] = (lambda one: _query(one, one, stream=True)) if path == "/query" else _chat
    load = Load(f"{service.url}{path}", [form(number) for number in numbers], STREAMS)
    row = place.measured(service, load)
    return {"cpu_us": row["worker_us"], "seconds": row["seconds"] / STREAMS, "tokens": tokens}


def _read_by_httpx(url: str, bodies: Iterable[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.benchmarks.httpx_reader", url]
    given = json.dumps(list(bodies))
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
