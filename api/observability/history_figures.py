"""The fleet's figures by minute: counted by every worker, written by one, merged when they are read.

A worker counts in memory (`MinuteCounts`); the counts reach Redis with its other counters. A minute in which Redis was
down all the time has no figures: it is a gap. A minute in which Redis was up at any time is complete, because workers
keep what they counted in it until Redis is back.

The variants of an experiment are counted in the same way, for its whole time too. Counts by group of units say how much
units differ: comparisons need that.

Latency is counted in buckets, which can be added up over workers and minutes. Percentiles are computed from the sums;
neighboring bounds differ by a quarter, so a percentile is off by less.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson

from api.breaker.state import State, Transition
from api.ports.answer_quality import Verdict
from api.ports.experiment import Variant
from api.ports.question import AnswerFinished
from api.values import CacheStatus

if TYPE_CHECKING:
    from api.observability.metrics import Metrics
    from api.ports.answer_cache import FeedbackVerdict, ServedAnswer
    from api.redis_store.stores.fleet import CacheCounters

_MANTISSAS: Final = (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8)
BOUNDS_MS: Final = tuple(round(mantissa * 10.0**power, 4) for power in range(-1, 6) for mantissa in _MANTISSAS)
"""Upper bounds of the buckets: 0.1 ms to 800 s."""
BOUNDS: Final = tuple(bound / 1000 for bound in BOUNDS_MS)
"""The same in seconds."""
BUCKETS: Final = (*(f"{bound:g}" for bound in BOUNDS_MS), "inf")
"""Their names in Redis."""
_INDEX: Final = {name: index for index, name in enumerate(BUCKETS)}
_EDGES: Final = (0.0, *BOUNDS_MS, BOUNDS_MS[-1])
MINUTE_SECONDS: Final = 60
PERCENTILES: Final = (50, 95, 99)
NO_QUERIES: Final = {**dict.fromkeys((status.value for status in CacheStatus), 0), "error": 0, "left": 0}
NO_TIME: Final = dict.fromkeys((state.value for state in State), 0.0)

Row = dict[str, Any]
"""The figures of a minute. Numbers can be added up, except those of `LATEST`."""
LATEST: Final = frozenset({"workers", "false_hits"})
"""Figures whose latest value counts."""


# -- counting ---------------------------------------------------------------------------------------------------------


class MinuteCounts:
    """What one worker counted and has not sent yet.

    `open` has the counts of the current minute: under (cache status, tier, index of the latency's bucket) the answers,
    under a name of the history everything else. `lost` is called for each minute that is dropped.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic) -> None:
        self.open: defaultdict[Any, int] = defaultdict(int)
        self._lost = lost
        self._clock = clock
        self._lost_at = -math.inf
        self._minute: int | None = None
        self._seen = False
        """True if Redis was up at any time of the current minute."""
        self._closed: dict[int, dict[str, int]] = {}

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to send."""
        return not (self.open or self._closed)

    def turn(self, minute: int | None, *, up: bool) -> None:
        """Notes which minute it is, and whether Redis is up. None before Redis has first told its time.

        Drops a minute in which Redis was down all the time: a part of it would look like all of it.
        """
        if minute is None:
            self._drop(self._clock())
        elif minute != self._minute:
            if self._minute is not None:
                self._close(self._minute)
            self._minute, self._seen = minute, False
        self._seen = self._seen or up

    def take(self, minute: int) -> dict[int, dict[str, int]]:
        """Returns all counts by minute, and forgets them. Redis is up."""
        self.turn(minute, up=True)
        self._close(minute)
        taken, self._closed = self._closed, {}
        return taken

    def _close(self, minute: int) -> None:
        if not self._seen:
            self._drop()
            return
        counts, self.open = self.open, defaultdict(int)
        if counts:
            sums = self._closed.setdefault(minute, {})
            for name, count in _named(counts):
                sums[name] = sums.get(name, 0) + count

    def _drop(self, now: float = math.inf) -> None:
        """Drops the open counts. `now`: they may be a part of a minute, so this calls `lost` once in 60 seconds."""
        if self.open:
            self.open = defaultdict(int)
            if now - self._lost_at >= MINUTE_SECONDS:
                self._lost_at = min(now, self._clock())
                self._lost()


def _named(counts: Mapping[Any, int]) -> Iterable[tuple[str, int]]:
    """Returns the counts under their names in Redis."""
    for key, count in counts.items():
        if isinstance(key, str):
            yield key, count
            continue
        status, tier, bucket = key
        yield f"queries:{status}", count
        yield f"latency:{status}:{BUCKETS[bucket]}", count
        if status == "hit":
            yield f"hits:{tier}", count


LOG_SCALE: Final = 1000
"""Redis adds whole numbers: the logarithms of milliseconds are counted in thousandths."""


class VariantCounts:
    """Counts what happens to requests that have a variant: for the experiment, the history and Prometheus."""

    def __init__(self, metrics: Metrics, counters: CacheCounters, history: MinuteCounts | None) -> None:
        self._metrics = metrics
        self._counters = counters
        self._history = history

    def answered(self, variant: Variant, answered: AnswerFinished) -> None:
        """Counts an answer by its cache status, its latency and its tokens."""
        kind = answered.match.kind if answered.match is not None else None
        seconds, usage = answered.timings.total, answered.usage
        bucket = BUCKETS[bisect_left(BOUNDS, seconds)]
        log = round(LOG_SCALE * math.log(max(seconds * 1000, 0.001)))
        counts = {f"latency:{bucket}": 1, f"group:{variant.group}:answer": 1, f"group:{variant.group}:log": log}
        if kind is not None and answered.status is CacheStatus.HIT:
            counts[f"hits:{kind}"] = 1
        if answered.status in (CacheStatus.HIT, CacheStatus.MISS):
            counts[f"group:{variant.group}:{answered.status.value}"] = 1
        if usage.completion_tokens:
            counts |= {"tokens:prompt": usage.prompt_tokens, "tokens:completion": usage.completion_tokens}
        self._ended(variant, answered.status.value, counts)
        if self._history is not None:
            self._history.open[f"variants:{variant.label}:latency:{bucket}"] += 1
        self._metrics.variant_answered(variant.experiment, variant.name, answered.status, kind, seconds)

    def refused(self, variant: Variant) -> None:
        """Counts a query that ended without an answer."""
        self._ended(variant, "error", {f"group:{variant.group}:error": 1})
        self._metrics.variant_query_ended(variant.experiment, variant.name, "error")

    def left(self, variant: Variant) -> None:
        """Counts a caller that disconnected."""
        self._ended(variant, "left", {})
        self._metrics.variant_query_ended(variant.experiment, variant.name, "left")

    def _ended(self, variant: Variant, status: str, counts: Mapping[str, int]) -> None:
        self._add(variant.experiment, variant.name, {f"queries:{status}": 1, **counts})
        if self._history is not None:
            self._history.open[f"variants:{variant.label}:queries:{status}"] += 1

    def labelled(self, variant: Variant, verdict: Verdict) -> None:
        """Counts a label of an answer that went out."""
        self._add(variant.experiment, variant.name, {f"group:{variant.group}:{verdict.value}": 1})
        self._metrics.variant_labelled(variant.experiment, variant.name, verdict.value)

    def voted(self, served: ServedAnswer, verdict: FeedbackVerdict, former: FeedbackVerdict | None) -> None:
        """Counts a vote in place of the key's former one."""
        if former == verdict:
            return
        experiment, _, name = served.variant.partition("/")
        counts = {f"group:{served.group}:{verdict}": 1}
        if former is not None:
            counts[f"group:{served.group}:{former}"] = -1
        self._add(experiment, name, counts)
        self._metrics.variant_voted(experiment, name, verdict)

    def _add(self, experiment: str, variant: str, counts: Mapping[str, int]) -> None:
        figures = self._counters.of_experiments[experiment]
        for name, number in counts.items():
            figures[f"{variant}:{name}"] += number


# -- merging ----------------------------------------------------------------------------------------------------------


def row_of(fields: Mapping[str, str]) -> Row:
    """Returns the figures of a minute from its flat fields: `queries:hit` becomes `{"queries": {"hit": ...}}`.

    Ignores values that cannot be read: a later release may write more.
    """
    row: Row = {}
    for name, text in fields.items():
        *path, last = name.split(":")
        with suppress(ValueError, AttributeError, TypeError):
            value = orjson.loads(text)
            inner = row
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
    return row


def read_row(text: bytes) -> Row:
    """Returns a written minute; without figures if it cannot be read."""
    with suppress(ValueError):
        row = orjson.loads(text)
        return row if isinstance(row, dict) else {}
    return {}


def merged(rows: Iterable[Row]) -> Row:
    """Returns the figures of several minutes together, oldest first."""
    sums: Row = {}
    for row in rows:
        for name, value in row.items():
            if name in LATEST:
                sums[name] = value
            else:
                _add(sums, name, value)
    return sums


def _add(sums: dict[str, Any], name: str, value: Any) -> None:
    """Adds a number, or an object of numbers. Ignores what is neither, or does not match the sum so far."""
    if isinstance(value, dict):
        inner = sums.setdefault(name, {})
        if isinstance(inner, dict):
            for key, part in value.items():
                _add(inner, key, part)
    elif isinstance(value, int | float) and not isinstance(sums.get(name), dict):
        sums[name] = sums.get(name, 0) + value


def percentile(buckets: Mapping[str, int], percent: float) -> float | None:
    """Returns the percentile in milliseconds, interpolated within its bucket; None without counts."""
    counts = sorted((_INDEX[name], count) for name, count in buckets.items() if name in _INDEX and count > 0)
    rank, below = sum(count for _, count in counts) * percent / 100, 0
    for index, count in counts:
        if below + count >= rank:
            low, high = _EDGES[index], _EDGES[index + 1]
            return round(low + (high - low) * (rank - below) / count, 3)
        below += count
    return None


def state_times(transitions: Sequence[Transition], now: State, start_ms: int, end_ms: int) -> dict[str, int]:
    """Returns the milliseconds that a breaker spent in each state between two times.

    `transitions`: those since `start_ms` or longer, oldest first. `now`: the state after the last one.
    """
    times: dict[str, int] = {}
    since, state = start_ms, now
    for transition in transitions:
        if transition.at_ms > start_ms:
            at = min(transition.at_ms, end_ms)
            before = transition.from_state.value
            times[before] = times.get(before, 0) + max(0, at - since)
            since = max(since, at)
        state = transition.to_state
    times[state.value] = times.get(state.value, 0) + max(0, end_ms - since)
    return {name: ms for name, ms in times.items() if ms}


def point(at: str, row: Row, breaker: str) -> dict[str, Any]:
    """Returns merged figures as the API shows them. `breaker`: the one of the first backend."""
    samples = max(1, row.get("samples", 0))
    breakers = {name: _seconds(times) for name, times in row.get("breaker_ms", {}).items()}
    return {
        "at": at,
        "queries": {**NO_QUERIES, **row.get("queries", {})},
        "hits": {"exact": 0, "semantic": 0, **row.get("hits", {})},
        "latency_ms": {
            status: {f"p{percent}": percentile(buckets, percent) for percent in PERCENTILES}
            for status, buckets in row.get("latency", {}).items()
        },
        "errors": row.get("errors", {}),
        "breaker_seconds": breakers.get(breaker, {}),
        "breakers": breakers,
        "tokens": {"prompt": 0, "completion": 0, **row.get("tokens", {})},
        "false_hits": row.get("false_hits"),
        "pool": _usage(row.get("pool", {}), samples),
        "bulkheads": {name: _usage(sums, samples) for name, sums in row.get("bulkhead", {}).items()},
        "rejected": row.get("rejected", {}),
        "workers": row.get("workers"),
        "started": row.get("started", 0),
        "restarts": row.get("restarts", 0),
        **({"variants": _variants(row["variants"])} if "variants" in row else {}),
    }


def _variants(variants: Mapping[str, Row]) -> dict[str, Any]:
    """Returns the figures of an experiment's variants, by `<experiment>/<variant>`."""
    return {
        name: {
            "queries": {**NO_QUERIES, **found.get("queries", {})},
            "latency_ms": {f"p{percent}": percentile(found.get("latency", {}), percent) for percent in PERCENTILES},
        }
        for name, found in variants.items()
    }


def _seconds(times: Mapping[str, int]) -> dict[str, float]:
    return {**NO_TIME, **{state: ms / 1000 for state, ms in times.items()}}


def _usage(sums: Mapping[str, int], samples: int) -> dict[str, float | None]:
    """Returns means over the samples, and the share of the limit that was in use."""
    means = {name: round(total / samples, 3) for name, total in sums.items()}
    limit = sums.get("limit", 0)
    return {**means, "utilization": round(sums.get("in_use", 0) / limit, 4) if limit else None}
