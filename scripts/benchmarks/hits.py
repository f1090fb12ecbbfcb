"""Hits and their rivals in turns, the tail of the latency at half the load, and what embedding adds to a hit."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import numpy as np
from openai import OpenAI

from api.embedders.minilm import MiniLM, model_files
from scripts.benchmarks import figures
from scripts.benchmarks.load import Load
from scripts.benchmarks.place import KEY, Place, Server
from scripts.benchmarks.rival_apps import QUESTION

CONNECTIONS: Final = 32
PARAPHRASE: Final = "Which city is the capital of France?"
BEARER: Final = {"Authorization": f"Bearer {KEY}"}
CLIENT_CALLS: Final = 30
OPENINGS: Final = ("", "Hello, ", "Please tell me: ", "Well, ", "Hi, ", "Hey, ", "Good morning, ", "Tell me, ")
ASKED: Final = ("which city is the capital of France", "what city is the capital of France", "the capital of France is")
CLOSINGS: Final = ("?", " please?", ", then?", ", thanks?", " now?", ", may I ask?")


@dataclass(frozen=True, slots=True)
class Case:
    """A server and the load that it gets in each round."""

    server: Server
    load: Load


def cases(place: Place, service: Server, through_redis: Server, *, rivals: bool) -> dict[str, Case]:
    """Starts the rivals. Returns the cases by name, each with its cache warm. `through_redis` has no near cache."""
    ask(service.url, QUESTION)
    found = {figures.BARE: _query(place.endpoint("bare"), QUESTION, "exact")}
    found |= {
        figures.EXACT: _query(through_redis, QUESTION, "exact"),
        figures.NEAR: _query(service, QUESTION, "exact"),
        figures.SEMANTIC: _query(service, PARAPHRASE, "semantic"),
        figures.REDISVL: _query(place.endpoint("redisvl_remembered"), PARAPHRASE, "semantic"),
        figures.REDISVL_EMBEDS: _query(place.endpoint("redisvl_embeds"), PARAPHRASE, "semantic"),
    }
    if rivals:
        found[figures.GPTCACHE] = _query(place.endpoint("gptcache"), PARAPHRASE, "semantic")
    found[figures.CHAT] = chat(service)
    if rivals:
        found[figures.LITELLM] = chat(place.litellm())
    for case in found.values():
        warm(place, case)
    return found


def _query(server: Server, question: str, kind: str) -> Case:
    body = json.dumps({"question": question})
    return Case(server, Load(f"{server.url}/query", [body], CONNECTIONS, expect=f'"kind":"{kind}"'))


def chat(server: Server) -> Case:
    """The request that the openai client makes."""
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "model": "llama3.2"})
    return Case(server, Load(f"{server.url}/v1/chat/completions", [body], CONNECTIONS, headers=BEARER))


def warm(place: Place, case: Case) -> None:
    """Fills the cache, and opens what a server opens with its first requests."""
    place.measured(case.server, replace(case.load, connections=1, bodies=case.load.bodies * 2, expect=""))
    time.sleep(0.5)  # LiteLLM stores an answer after it has sent it
    place.measured(case.server, replace(case.load, bodies=case.load.bodies * 2 * CONNECTIONS))


def in_turns(
    place: Place, cases: dict[str, Case], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """Measures each case once per round, all cases of a round one after the other."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for number in range(rounds):
        say(f"hits, round {number + 1} of {rounds}")
        for name, case in cases.items():
            found[name].append(place.measured(case.server, replace(case.load, seconds=seconds)))
    return found


def half_load(
    place: Place,
    cases: dict[str, Case],
    rows: Mapping[str, Sequence[dict[str, float]]],
    rounds: int,
    seconds: float,
) -> dict[str, list[dict[str, float]]]:
    """Measures each case in turns at half of the requests a second that it reached, at fixed times."""
    rates = {name: statistics.median([row["rate"] for row in rows[name]]) / 2 for name in cases}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(place.measured(case.server, replace(case.load, seconds=seconds, rate=rates[name])))
    return found


# -- By the openai client ----------------------------------------------------------------------------------------------


def by_client(cases: dict[str, Case], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measures a cached chat as a program sees it that uses the openai client, one call at a time."""
    wanted = {name: case for name, case in cases.items() if name in {figures.CHAT, figures.LITELLM}}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for _ in range(rounds):
        for name, case in wanted.items():
            with OpenAI(base_url=f"{case.server.url}/v1", api_key=KEY) as one:
                times = sorted(_timed(one) for _ in range(CLIENT_CALLS))
            found[name].append({"p50_ms": figures.percentile(times, 0.5), "p99_ms": figures.percentile(times, 0.99)})
    return found


def _timed(client: OpenAI) -> float:
    began = time.perf_counter()
    client.chat.completions.create(model="llama3.2", messages=[{"role": "user", "content": QUESTION}])
    return (time.perf_counter() - began) * 1000


# -- Embedding ---------------------------------------------------------------------------------------------------------


def embedded(
    place: Place, service: Server, rounds: int, tenants: int, wordings: int
) -> dict[str, list[dict[str, float]]]:
    """Compares the CPU time of semantic hits whose question is embedded with that of the embedder alone.

    One client, so that no batch makes embedding cheaper. A worker remembers embeddings by tenant, so each tenant asks
    each question once.
    """
    model, names = MiniLM(model_files(None)), (f"embedded-{number}" for number in itertools.count())
    texts = hits_of(service.url, next(names), wordings)
    found: dict[str, list[dict[str, float]]] = {"hit": [], "alone": []}
    for _ in range(rounds):
        bodies = [body for name in itertools.islice(names, tenants) for body in _asked(service.url, name, texts)]
        load = Load(f"{service.url}/query", bodies, 1, expect='"kind":"semantic"')
        found["hit"].append({"cpu_us": place.measured(service, load)["worker_us"]})
        began = time.process_time()
        for text in texts * tenants:
            np.frombuffer(model.encode([text])[0], dtype="<f4")
        found["alone"].append({"cpu_us": (time.process_time() - began) * 1e6 / len(texts) / tenants})
    return found


def _asked(url: str, tenant: str, texts: Sequence[str]) -> Iterator[str]:
    """Stores the answer for a tenant. Returns the requests that find it by meaning."""
    ask(url, QUESTION, tenant=tenant)
    return (json.dumps({"question": text, "tenant": tenant}) for text in texts)


def hits_of(url: str, tenant: str, most: int) -> list[str]:
    """Tries `most` paraphrases. Returns those that find the answer to `QUESTION`."""
    wordings = (f"{opening}{asked}{closing}" for opening in OPENINGS for closing in CLOSINGS for asked in ASKED)
    found = []
    for number, wording in enumerate(itertools.islice(wordings, most)):
        one = f"{tenant}-{number}"
        ask(url, QUESTION, tenant=one)
        if ask(url, wording, tenant=one)["cache"]["kind"] == "semantic":
            found.append(wording)
    return found


def ask(url: str, question: str, **fields: Any) -> dict[str, Any]:
    """Asks one question. Returns the answer."""
    answer = httpx.post(f"{url}/query", json={"question": question, **fields}, timeout=60, trust_env=False)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found
