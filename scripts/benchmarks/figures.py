"""The targets, and the figures that are compared with them. Pure arithmetic on the document of a run.

A case is measured once per round, and the cases of a round follow each other. A ratio is the median of the rounds'
ratios, so a machine that is busy for a while slows both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

BARE: Final = "bare FastAPI"
EXACT: Final = "Ragherd, exact hit"
NEAR: Final = "Ragherd, exact hit, near cache"
SEMANTIC: Final = "Ragherd, semantic hit, embedding remembered"
REDISVL: Final = "redisvl, embedding remembered"
REDISVL_EMBEDS: Final = "redisvl, embeds each time"
GPTCACHE: Final = "GPTCache, embeds each time"
CHAT: Final = "Ragherd, cached chat"
LITELLM: Final = "LiteLLM's proxy, cached chat"
QUERY_STREAM: Final = "POST /query"
CHAT_STREAM: Final = "POST /api/chat"
HTTPX_STREAM: Final = "httpx reads Ollama"
PAIRS: Final = {"exact": (EXACT, BARE), "near": (NEAR, BARE), "semantic": (SEMANTIC, REDISVL), "chat": (CHAT, LITELLM)}
"""The cases of each target that compares two."""
FEW, MANY = "1", "32"
"""Clients, as keys of the document."""

Document = Mapping[str, Any]
Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of the table, and the value that it shall reach: at least `goal` if `least`, else at most."""

    key: str
    name: str
    goal: float
    unit: str = ""
    least: bool = False

    def is_met_by(self, figure: float) -> bool:
        """Compares unrounded."""
        return figure >= self.goal if self.least else figure <= self.goal


TARGETS: Final = (
    Target("exact", "exact hit through Redis / bare FastAPI, requests a second", 1.0, least=True),
    Target("near", "exact hit, near cache / bare FastAPI, requests a second", 2.0, least=True),
    Target("semantic", "semantic hit / redisvl, both with the embedding remembered, requests a second", 4, least=True),
    Target("embedder", "semantic hit with MiniLM: CPU of the worker / of the embedder alone", 1.10),
    Target("miss_1", "miss: added p50 with 1 client, embedding apart", 1.0, "ms"),
    Target("miss_32", "miss: added p50 with 32 clients, embedding apart", 3.0, "ms"),
    Target("stream", "stream: CPU per token passed on / httpx reading it", 1.5),
    Target("tail", "exact hit: p99 / p50 at half the maximum load", 3.0),
    Target("size_exact", "exact look-up: p50 at 100,000 entries / at 1,000", 1.3),
    Target("size_semantic", "semantic look-up: p50 at 100,000 entries / at 1,000", 1.3),
    Target("memory_plain", "memory of a worker without ONNX", 75, "MB"),
    Target("memory_onnx", "memory of a worker with ONNX", 200, "MB"),
    Target("entry", "Redis bytes an entry (384 dimensions, index included)", 3000, "B"),
    Target("start", "start of a worker until ready, Redis warm", 1.0, "s"),
    Target("chat", "cached chat of the openai client / LiteLLM's proxy, requests a second", 50, least=True),
)


# -- Arithmetic --------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which `share` of the sorted values lie, interpolated. Raises `ValueError` for none."""
    if not values:
        raise ValueError("no values")
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the median of each field that all rows have."""
    shared = set.intersection(*(set(row) for row in rows))
    return {name: statistics.median([row[name] for row in rows]) for name in rows[0] if name in shared}


def median_of(over: Callable[[Row, Row], float], rows: Sequence[Row], base: Sequence[Row]) -> float:
    """Returns the median of what `over` makes of each round's two rows."""
    return statistics.median([over(one, other) for one, other in zip(rows, base, strict=True)])


def ratio(field: str) -> Callable[[Row, Row], float]:
    """Returns a function that divides a field of two rows."""
    return lambda one, other: one[field] / other[field]


def added(field: str) -> Callable[[Row, Row], float]:
    """Returns a function that subtracts a field of two rows."""
    return lambda one, other: one[field] - other[field]


def marginal(long: Row, short: Row, idle_us: float) -> float:
    """Returns the CPU microseconds of one more token, from answers of two lengths.

    What a request costs whatever its length cancels out. `idle_us` is what the process uses per second without one.
    """
    busy = (long["cpu_us"] - long["seconds"] * idle_us) - (short["cpu_us"] - short["seconds"] * idle_us)
    return busy / (long["tokens"] - short["tokens"])


# -- The figures of a run ----------------------------------------------------------------------------------------------


def figures_of(document: Document) -> dict[str, float]:
    """Returns the figure of each target that the run has measured."""
    found: dict[str, float] = {}
    for one in (_of_hits, _of_misses, _of_streams, _of_sizes, _of_processes):
        found |= one(document)
    return found


def _of_hits(document: Document) -> dict[str, float]:
    cases, found = document["cases"], {}
    for key, (name, base) in PAIRS.items():
        if name in cases and base in cases:
            found[key] = median_of(ratio("rate"), cases[name], cases[base])
    found["tail"] = statistics.median([row["p99_ms"] / row["p50_ms"] for row in document["half_load"][EXACT]])
    embedded = document["embedded"]
    found["embedder"] = median_of(ratio("cpu_us"), embedded["hit"], embedded["alone"])
    return found


def by_cpu(document: Document) -> dict[str, float]:
    """Returns the ratios of the pairs in requests per second of the servers' CPU time.

    Other programs change these less than requests per second: on a busy machine the faster server waits as long for a
    core as the slower one.
    """
    cases = document["cases"]
    return {
        f"{name} / {base}": median_of(ratio("worker_us"), cases[base], cases[name])
        for name, base in PAIRS.values()
        if name in cases and base in cases
    }


def _of_misses(document: Document) -> dict[str, float]:
    rows = document["misses"]
    return {f"miss_{n}": median_of(added("p50_ms"), rows[n]["miss"], rows[n]["direct"]) for n in (FEW, MANY)}


def _of_streams(document: Document) -> dict[str, float]:
    streams = document["streams"]
    return {"stream": median_of(ratio("token_us"), streams[QUERY_STREAM], streams[HTTPX_STREAM])}


def _of_sizes(document: Document) -> dict[str, float]:
    small, large = document["sizes"]["small"], document["sizes"]["large"]
    found = {f"size_{kind}": median_of(ratio(f"{kind}_ms"), large["rounds"], small["rounds"]) for kind in KINDS}
    return {**found, "entry": large["entry_bytes"]}


KINDS: Final = ("exact", "semantic")


def _of_processes(document: Document) -> dict[str, float]:
    processes = document["processes"]
    memory = {f"memory_{kind}": megabytes for kind, megabytes in processes["memory"].items()}
    return {**memory, "start": statistics.median(processes["starts"]["onnx"])}
