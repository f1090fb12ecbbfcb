"""What work costs, as `scripts/measure_costs.py` measured it: read from its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


class CostsUnreadable(Exception):
    """A file that is not what `scripts/measure_costs.py` writes."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one piece of work: microseconds of Redis's main thread, commands (those in scripts too), bytes."""

    server_us: float = 0.0
    commands: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.server_us + other.server_us,
            self.commands + other.commands,
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.server_us * times, self.commands * times, self.bytes_in * times, self.bytes_out * times)


@dataclass(frozen=True, slots=True)
class Periodic:
    """What an idle worker does every so many seconds. `look`: for work that any worker may do."""

    name: str
    cost: Cost
    every: float
    look: bool

    def times(self, guards: int) -> int:
        """How often a worker has it, by its breakers: an Ollama has one, or two where it embeds too.

        A worker follows the log of each, the messages of as many bulkheads, and those of its flights.
        """
        return {"breaker_poll": guards, "breaker_follow": guards, "channel_ping": guards + 1}.get(self.name, 1)


@dataclass(frozen=True, slots=True)
class BySize:
    """A figure measured at some sizes, in between by a straight line of the logarithms."""

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """Below what was measured, as the least of it; beyond, the last line goes on unless it falls."""
        sizes, values = zip(*((math.log(size), math.log(max(value, 1e-9))) for size, value in self.points), strict=True)
        wanted = math.log(max(size, 1.0))
        if wanted <= sizes[0] or len(sizes) == 1:
            return math.exp(values[0])
        if wanted > sizes[-1] and values[-1] <= values[-2]:
            return math.exp(values[-1])
        place = next((number for number, at in enumerate(sizes) if at >= wanted), len(sizes) - 1)
        (x0, x1), (y0, y1) = sizes[place - 1 : place + 1], values[place - 1 : place + 1]
        return math.exp(y0 + (y1 - y0) * (wanted - x0) / (x1 - x0))


@dataclass(frozen=True, slots=True)
class CostBySize:
    """The four figures of a `Cost` by size."""

    server_us: BySize
    commands: BySize
    bytes_in: BySize
    bytes_out: BySize

    def at(self, size: float) -> Cost:
        """At one size."""
        return Cost(self.server_us.at(size), self.commands.at(size), self.bytes_in.at(size), self.bytes_out.at(size))


@dataclass(frozen=True, slots=True)
class WorkerCosts:
    """A worker's own processor time in microseconds: each second without work, by question, by token; and Redis's
    bytes and connections for it."""

    idle: float
    exact_hit: float
    semantic_hit: float
    miss: float
    token: float
    memory: float
    connections: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Everything that was measured."""

    machine: Mapping[str, str]
    periodic: tuple[Periodic, ...]
    once: Mapping[str, Cost]
    exact: Cost
    similar: CostBySize
    store: CostBySize
    retrieve: CostBySize
    entry_bytes: float
    chunk_bytes: float
    worker: WorkerCosts
    wake: float
    """Microseconds of Redis for each follower that a transition wakes."""
    coalescing: Mapping[str, float]
    looks: int
    slowest: float

    def pace(self, workers: int) -> float:
        """By how much longer each of so many workers pauses between two looks."""
        return min(max(1.0, workers / self.looks), self.slowest)


def load_costs(path: Path | None = None) -> Costs:
    """Those of a file, or those that came with the release. Raises `CostsUnreadable`."""
    try:
        text = (files("api.scaling") / "measured_costs.json").read_text("utf-8") if path is None else path.read_text()
        return _costs(json.loads(text))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CostsUnreadable(f"{path}: not what scripts/measure_costs.py writes ({error!r})") from error


def _costs(raw: Mapping[str, Any]) -> Costs:
    sizes, operations = raw["sizes"], raw["operations"]
    entries, chunks = sizes["entries"], sizes["chunks"]
    return Costs(
        machine=raw["machine"],
        periodic=tuple(_periodic(name, one) for name, one in operations.items() if one["every"]),
        once={name: _cost(one) for name, one in operations.items() if not one["every"]},
        exact=_cost(entries[0]["exact"]),
        similar=_by_size(entries, "entries", "similar"),
        store=_by_size(entries, "entries", "store"),
        retrieve=_by_size(chunks, "chunks", "retrieve"),
        entry_bytes=float(entries[-1]["entry_bytes"]),
        chunk_bytes=float(chunks[-1]["chunk_bytes"]),
        worker=_worker(raw["requests"], raw["idle"]),
        wake=float(raw["wake"]["server_us"]),
        coalescing=raw["coalescing"],
        looks=int(raw["pace"]["looks"]),
        slowest=float(raw["pace"]["slowest"]),
    )


def _cost(raw: Mapping[str, Any]) -> Cost:
    return Cost(*(float(raw[name]) for name in ("server_us", "commands", "bytes_in", "bytes_out")))


def _periodic(name: str, raw: Mapping[str, Any]) -> Periodic:
    return Periodic(name, _cost(raw), float(raw["every"]), bool(raw["look"]))


def _by_size(rows: Sequence[Mapping[str, Any]], size: str, name: str) -> CostBySize:
    def figure(of: str) -> BySize:
        return BySize(tuple((float(row[size]), float(row[name][of])) for row in rows))

    return CostBySize(figure("server_us"), figure("commands"), figure("bytes_in"), figure("bytes_out"))


def _worker(requests: Mapping[str, Any], idle: Sequence[Mapping[str, Any]]) -> WorkerCosts:
    """The largest idle fleet stands for all: what the first worker does for the fleet is spread the most."""
    largest = max(idle, key=lambda one: int(one["workers"]))
    miss, long = requests["miss"], requests["miss_long"]
    token = max(0.0, (long["worker_us"] - miss["worker_us"]) / (long["tokens"] - miss["tokens"]))
    return WorkerCosts(
        idle=float(largest["worker_us"]),
        exact_hit=float(requests["exact_hit"]["worker_us"]),
        semantic_hit=float(requests["semantic_hit"]["worker_us"]),
        miss=max(0.0, miss["worker_us"] - token * miss["tokens"]),
        token=token,
        memory=float(largest["memory"]),
        connections=float(largest["connections"]),
    )
