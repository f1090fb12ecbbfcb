"""The figures of a window of time, added up from the points of `GET /api/history`. Does no I/O.

A gap is time of which nothing is known. Gaps before the first figures are left out: the service was not there yet, or
the window is longer than the history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

SERVED: Final = ("hit", "stale", "coalesced")
"""Cache statuses of answers that needed no generation for themselves."""
GENERATED: Final = ("miss", "bypass")
ANSWERS: Final = (*SERVED, *GENERATED)
UNCACHED: Final = "miss"
ALL: Final = "all"
MOST_SLICES: Final = 96
PERCENTILES: Final = (50, 95, 99)

Point = Mapping[str, Any]
Buckets = Counter[str]


class LatencyScale:
    """The buckets in which latencies are counted. `bounds`: upper bounds in milliseconds; the last bucket has none."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._edges = (0.0, *bounds, bounds[-1])
        self._place = {f"{bound:g}": place for place, bound in enumerate(bounds)} | {"inf": len(bounds)}

    def mean(self, counts: Mapping[str, int]) -> float | None:
        """Returns the mean, with each count in the middle of its bucket; None without counts."""
        known = self._known(counts)
        total = sum(count for _, count in known)
        if not total:
            return None
        return sum((self._edges[place] + self._edges[place + 1]) / 2 * count for place, count in known) / total

    def percentile(self, counts: Mapping[str, int], percent: float) -> float | None:
        """Returns the percentile, interpolated within its bucket; None without counts."""
        known = self._known(counts)
        rank, below = sum(count for _, count in known) * percent / 100, 0
        for place, count in known:
            if below + count >= rank:
                low, high = self._edges[place], self._edges[place + 1]
                return low + (high - low) * (rank - below) / count
            below += count
        return None

    def summary(self, counts: Mapping[str, int]) -> dict[str, float | None]:
        """Returns the mean and the percentiles."""
        return {"mean": self.mean(counts), **{f"p{one}": self.percentile(counts, one) for one in PERCENTILES}}

    def _known(self, counts: Mapping[str, int]) -> list[tuple[int, int]]:
        return sorted((self._place[name], count) for name, count in counts.items() if name in self._place and count > 0)


@dataclass(slots=True)
class Slice:
    """A part of the window, for the charts. `p95` is in milliseconds, by cache status; `states` in seconds."""

    at: float
    seconds: float
    known: float = 0.0
    queries: Counter[str] = field(default_factory=Counter)
    p95: dict[str, float | None] = field(default_factory=dict)
    states: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "at": rfc3339(self.at),
            "seconds": self.seconds,
            "known_seconds": self.known,
            "queries": dict(self.queries),
            "p95_ms": self.p95,
            "breaker_seconds": self.states,
        }


@dataclass(slots=True)
class WindowFigures:
    """What is known of a window. Times are seconds since 1970, latencies milliseconds.

    `restarts` and `unexplained_starts` are None where the source does not know them. `uncached_ms` is the mean latency
    of an answer that the model generated, and `uncached_is` says which answers these are.
    """

    source: str
    begins: float
    ends: float
    known: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)
    queries: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    breakers: dict[str, dict[str, float]] = field(default_factory=dict)
    latency: dict[str, dict[str, float | None]] = field(default_factory=dict)
    mean_ms: float | None = None
    uncached_ms: float | None = None
    uncached_is: str = "the mean of misses"
    restarts: int | None = None
    unexplained_starts: int | None = None
    workers: tuple[int, int] | None = None
    false_hits: Mapping[str, Any] | None = None
    pool: dict[str, float] = field(default_factory=dict)
    bulkheads: dict[str, dict[str, float]] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    namespaces: tuple[str, ...] = ()
    """Those of Kubernetes that a Prometheus has figures of. More than one are several fleets, added up."""

    @property
    def unknown(self) -> float:
        """Seconds of the window in gaps."""
        return max(0.0, self.ends - self.begins - self.known)

    @property
    def answers(self) -> int:
        return sum(self.queries[status] for status in ANSWERS)

    @property
    def served(self) -> int:
        return sum(self.queries[status] for status in SERVED)

    @property
    def generated(self) -> int:
        return sum(self.queries[status] for status in GENERATED)

    def document(self) -> dict[str, Any]:
        """Returns the figures as JSON."""
        return {
            "queries": dict(self.queries),
            "hits": dict(self.hits),
            "errors": dict(self.errors),
            "tokens": dict(self.tokens),
            "rejected": dict(self.rejected),
            "breaker_seconds": self.breakers,
            "latency_ms": self.latency,
            "mean_ms": self.mean_ms,
            "uncached_ms": self.uncached_ms,
            "restarts": self.restarts,
            "unexplained_starts": self.unexplained_starts,
            "workers": self.workers and {"least": self.workers[0], "most": self.workers[1]},
            "false_hits": self.false_hits,
            "pool": self.pool,
            "bulkheads": self.bulkheads,
        }

    def window(self) -> dict[str, Any]:
        """Returns the window and its gaps as JSON."""
        return {
            "from": rfc3339(self.begins),
            "to": rfc3339(self.ends),
            "seconds": round(self.ends - self.begins, 1),
            "gap_seconds": round(self.unknown, 1),
            "gaps": [{"from": rfc3339(begin), "to": rfc3339(end)} for begin, end in self.gaps],
        }


def rfc3339(at: float) -> str:
    """Returns a time with whole seconds in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_points(
    points: Sequence[Point], step: float, start: float, end: float, scale: LatencyScale
) -> WindowFigures | None:
    """Returns the figures of the points between two times, or None if nothing is known of them."""
    known = [(_time(point["at"]), point) for point in points]
    while known and known[0][1].get("gap"):
        known.pop(0)
    if not known:
        return None
    found = WindowFigures("history", max(start, known[0][0]), end)
    buckets: dict[str, Buckets] = {}
    for at, point in known:
        begin = max(at, start)  # the first point may begin before the window
        _add(found, buckets, begin, max(0.0, min(at + step, end) - begin), point)
    found.gaps = list(_joined(found.gaps))
    found.latency = {status: scale.summary(counts) for status, counts in sorted(buckets.items())}
    everything = sum(buckets.values(), Counter[str]())
    found.latency[ALL] = scale.summary(everything)
    found.mean_ms = scale.mean(everything)
    found.uncached_ms = scale.mean(buckets.get(UNCACHED, {}))
    for sums in (found.pool, *found.bulkheads.values()):
        for name in sums:
            sums[name] = round(sums[name] / found.known, 4) if found.known else 0.0
    _count_workers(found, [point for _, point in known if not point.get("gap")])
    found.slices = list(_slices(known, step, end, scale))
    return found


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def known_seconds(point: Point, seconds: float) -> float:
    """Returns how much of a point's time is known."""
    return 0.0 if point.get("gap") else max(0.0, seconds - 60.0 * point.get("missing_minutes", 0))


def _add(found: WindowFigures, buckets: dict[str, Buckets], at: float, seconds: float, point: Point) -> None:
    known = known_seconds(point, seconds)
    found.known += known
    if known < seconds:  # of a larger step, it is not known which minutes are missing
        found.gaps.append((at, at + seconds))
    if point.get("gap"):
        return
    sums = (found.queries, found.hits, found.errors, found.tokens, found.rejected)
    for total, name in zip(sums, ("queries", "hits", "errors", "tokens", "rejected"), strict=True):
        total.update(point.get(name) or {})
    for name, states in (point.get("breakers") or {}).items():
        _weigh(found.breakers.setdefault(name, {}), states, 1.0)
    for status, counts in (point.get("latency_buckets_ms") or {}).items():
        buckets.setdefault(status, Counter()).update(counts)
    _weigh(found.pool, point.get("pool") or {}, known)
    for name, usage in (point.get("bulkheads") or {}).items():
        _weigh(found.bulkheads.setdefault(name, {}), usage, known)
    found.false_hits = point.get("false_hits") or found.false_hits


def _weigh(sums: dict[str, float], means: Mapping[str, float | None], seconds: float) -> None:
    for name, value in means.items():
        sums[name] = sums.get(name, 0.0) + (value or 0.0) * seconds


def _joined(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Joins spans that touch each other."""
    last: tuple[float, float] | None = None
    for begin, end in spans:
        if last is not None and begin <= last[1]:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = begin, end
    if last is not None:
        yield last


def _count_workers(found: WindowFigures, points: Sequence[Point]) -> None:
    """Counts restarts, and starts that neither a restart nor a growing fleet explains.

    A replica that is replaced, by a rollout or after a crash, starts its workers and restarts none.
    """
    counts = [int(point["workers"]) for point in points if point.get("workers")]
    starts = [int(point.get("started", 0)) for point in points]
    found.restarts = sum(int(point.get("restarts", 0)) for point in points)
    found.workers = (min(counts), max(counts)) if counts else None
    first = next((number for number, point in enumerate(points) if point.get("workers")), 0)
    before = max(0, counts[0] - sum(starts[: first + 1])) if counts else 0
    growth = max(0, max(counts, default=0) - before)
    found.unexplained_starts = max(0, sum(starts) - found.restarts - growth)


def _slices(known: Sequence[tuple[float, Point]], step: float, end: float, scale: LatencyScale) -> Iterator[Slice]:
    """Groups the points into at most `MOST_SLICES` slices."""
    size = -(-len(known) // MOST_SLICES)
    for first in range(0, len(known), size):
        group = known[first : first + size]
        at = group[0][0]
        one = Slice(at, min(len(group) * step, end - at))
        buckets: dict[str, Buckets] = {}
        for begin, point in group:
            one.known += known_seconds(point, min(step, max(0.0, end - begin)))
            one.queries.update(point.get("queries") or {})
            _weigh(one.states, point.get("breaker_seconds") or {}, 1.0)
            for status, counts in (point.get("latency_buckets_ms") or {}).items():
                buckets.setdefault(status, Counter()).update(counts)
        one.p95 = {status: scale.percentile(counts, 95) for status, counts in sorted(buckets.items())}
        yield one
