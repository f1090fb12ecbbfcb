"""Reads the measured costs of operations from the JSON that `scripts/measure_costs.py` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


class CostsUnreadable(Exception):
    """The file was not written by `scripts/measure_costs.py`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one operation: microseconds of Redis's main thread, commands (including those in scripts), bytes."""

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
    """Work that an idle worker repeats every `every` seconds. `shared`: any worker of the fleet may do it."""

    name: str
    cost: Cost
    every: float
    shared: bool

    def times(self, breakers: int) -> int:
        """Returns how often a worker does this work.

        An Ollama has one breaker, or two if it also embeds. A worker follows each breaker's log, the messages of as
        many bulkheads, and those of its flights.
        """
        return {"breaker_poll": breakers, "breaker_follow": breakers, "channel_ping": breakers + 1}.get(self.name, 1)


@dataclass(frozen=True, slots=True)
class BySize:
    """A value measured at several sizes. Interpolates linearly between the logarithms."""

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """Returns the value at a size.

        Sizes below the measured range get the smallest value. Beyond it the last segment is extended, but never falls.
        """
        sizes, values = zip(*((math.log(size), math.log(max(value, 1e-9))) for size, value in self.points), strict=True)
        position = math.log(max(size, 1.0))
        if position <= sizes[0] or len(sizes) == 1:
            return math.exp(values[0])
        if position > sizes[-1] and values[-1] <= values[-2]:
            return math.exp(values[-1])
        index = next((number for number, at in enumerate(sizes) if at >= position), len(sizes) - 1)
        (x0, x1), (y0, y1) = sizes[index - 1 : index + 1], values[index - 1 : index + 1]
        return math.exp(y0 + (y1 - y0) * (position - x0) / (x1 - x0))


@dataclass(frozen=True, slots=True)
class CostBySize:
    """The four values of a `Cost` by size."""

    server_us: BySize
    commands: BySize
    bytes_in: BySize
    bytes_out: BySize

    def at(self, size: float) -> Cost:
        """Returns the cost at one size."""
        return Cost(self.server_us.at(size), self.commands.at(size), self.bytes_in.at(size), self.bytes_out.at(size))


@dataclass(frozen=True, slots=True)
class WorkerCosts:
    """Costs of a worker: its CPU time in microseconds per idle second, question and token; its Redis memory and
    connections.
    """

    idle: float
    exact_hit: float
    semantic_hit: float
    miss: float
    token: float
    memory: float
    connections: float


@dataclass(frozen=True, slots=True)
class Costs:
    """All measured costs."""

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
    wake_us: float
    """Microseconds of Redis per follower that a transition wakes."""
    coalescing: Mapping[str, float]
    full_pace_workers: int
    max_slowdown: float

    def pace(self, workers: int) -> float:
        """Returns the factor by which each of `workers` stretches the pause between two rounds of shared work."""
        return min(max(1.0, workers / self.full_pace_workers), self.max_slowdown)


def load_costs(path: Path | None = None) -> Costs:
    """Reads the costs from `path`, or those shipped with the release. Raises `CostsUnreadable`."""
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
        wake_us=float(raw["wake"]["server_us"]),
        coalescing=raw["coalescing"],
        full_pace_workers=int(raw["pace"]["looks"]),
        max_slowdown=float(raw["pace"]["slowest"]),
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
    """Takes the costs of the largest idle fleet, where the work that one worker does for all is spread most widely."""
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
