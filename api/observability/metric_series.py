"""The series of Prometheus metrics: families that look each series up once, and direct writing to its value.

The breakers' series stand here too, with the listener that counts each call.

prometheus_client's own `labels` and `inc` take most of the time of a request's counts. What this module touches of its
inside is pinned by pyproject.toml and by tests/unit/test_metrics.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from types import MappingProxyType
from typing import Any, Final, get_args

import pybreaker
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from api.breaker.state import BreakerListener, CallOutcome, State, Transition
from api.observability import metric_names as names
from api.observability.metric_names import BreakerOutcome, BreakerState, MetricSpec


class MetricFamily(dict[tuple[str, ...], Any]):
    """The series of one metric by label values: `labels()` is slow, so each series is looked up once."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        super().__init__()
        self._metric = _make(spec, registry)

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        series = self[labels] = self._metric.labels(*labels) if labels else self._metric
        return series

    def begin(self, *labels: str) -> None:
        """Shows a series at zero before its first use: `rate` needs a zero to start from."""
        self[labels]


Slot = tuple[Any, Any, int]
"""A stored value, and in multiprocess mode its file and its place in it."""


def slot_of(value: Any) -> Slot:
    """Returns the place of a value of prometheus_client."""
    file = getattr(value, "_file", None)
    return (value, file, file._positions[value._key]) if file is not None else (value, None, 0)


class CounterSlots(dict[tuple[str, ...], Slot]):
    """The slot of each series of a counter."""

    def __init__(self, family: MetricFamily) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, labels: tuple[str, ...]) -> Slot:
        slot = self[labels] = slot_of(self._family[labels]._value)
        return slot


class HistogramSlots(dict[tuple[Any, ...], tuple[Slot, Sequence[Slot], Sequence[float]]]):
    """For each series of a histogram the slots of its sum and its buckets, and the buckets' upper bounds."""

    def __init__(self, family: MetricFamily) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, labels: tuple[Any, ...]) -> tuple[Slot, Sequence[Slot], Sequence[float]]:
        series = self._family[tuple([str(label) for label in labels])]
        buckets = [slot_of(bucket) for bucket in series._buckets]
        found = self[labels] = (slot_of(series._sum), buckets, series._upper_bounds)
        return found


def add_in_memory(additions: Iterable[tuple[Slot, float]]) -> None:
    """Adds to values outside multiprocess mode."""
    for (value, _, _), amount in additions:
        value.inc(amount)


def add_in_file(additions: Iterable[tuple[Slot, float]]) -> None:
    """Adds to values in the worker's file, in a third of the time of `MmapedValue.inc`.

    It leaves out the lock and the check for a fork: only the event loop's thread counts requests, and no worker forks.
    It assigns the eight bytes at once. `pack_into` would first clear them, and a scrape in between would read 0, which
    Prometheus takes for a restart.
    """
    for (value, file, place), amount in additions:
        total = value._value = value._value + amount
        file._m[place : place + 8] = _PACK(total)


_PACK: Final = struct.Struct("d").pack
"""prometheus_client stores a value as a native double; its time follows, and is 0 for counts."""


def adding() -> Callable[[Iterable[tuple[Slot, float]]], None]:
    """Returns the function that adds to values where this process keeps them."""
    return add_in_file if getattr(values.ValueClass, "_multiprocess", False) else add_in_memory


def _make(spec: MetricSpec, registry: CollectorRegistry) -> Any:
    if spec.type == "counter":
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.type == "gauge":
        return Gauge(spec.name, spec.help, spec.labels, registry=registry, multiprocess_mode=spec.across)
    return Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)


# -- of circuit breakers -----------------------------------------------------------------------------------------------

STATES: Mapping[State, BreakerState] = MappingProxyType(
    {State.CLOSED: "closed", State.OPEN: "open", State.HALF_OPEN: "half_open"}
)
OUTCOMES: Mapping[CallOutcome, BreakerOutcome] = MappingProxyType(
    {
        CallOutcome.OK: "successful",
        CallOutcome.SLOW: "slow_successful",
        CallOutcome.FAILED: "failed",
        CallOutcome.SLOW_FAILED: "slow_failed",
        CallOutcome.IGNORED: "ignored",
    }
)


class BreakerFamilies:
    """The breakers' part of `Metrics`. The label `name` is the breaker's."""

    def __init__(self, families: Mapping[MetricSpec, MetricFamily]) -> None:
        self._families = families

    def known(self, name: str) -> None:
        """Starts a new breaker's counters at zero. Its state is not known yet."""
        for outcome in get_args(BreakerOutcome):
            self._families[names.BREAKER_CALLS].begin(name, outcome)
        for before, after in permutations(get_args(BreakerState), 2):
            self._families[names.BREAKER_TRANSITIONS].begin(name, before, after)
        for spec in (names.BREAKER_NOT_PERMITTED, names.BREAKER_STALE_RESULTS, names.BREAKER_LOST_PROBES):
            self._families[spec].begin(name)
        self.store(name, local=False)

    def state(self, name: str, state: BreakerState) -> None:
        """Sets the breaker's state. The pod shows the one that the last worker reported."""
        for other in get_args(BreakerState):
            self._families[names.BREAKER_STATE][name, other].set(float(other == state))

    def changed(self, name: str, before: BreakerState, after: BreakerState) -> None:
        """Counts a change of state that this worker caused."""
        self._families[names.BREAKER_TRANSITIONS][name, before, after].inc()

    def call(self, name: str, outcome: BreakerOutcome) -> None:
        """Counts a call of this worker."""
        self._families[names.BREAKER_CALLS][name, outcome].inc()

    def rejected(self, name: str) -> None:
        """Counts a rejected call of this worker."""
        self._families[names.BREAKER_NOT_PERMITTED][(name,)].inc()

    def rates(self, name: str, *, failure: float, slow: float) -> None:
        """Sets the rates of the window, in percent."""
        self._families[names.BREAKER_FAILURE_RATE][(name,)].set(failure)
        self._families[names.BREAKER_SLOW_CALL_RATE][(name,)].set(slow)

    def stale_results(self, name: str, count: int = 1) -> None:
        """Counts results of this worker that arrived after their epoch ended."""
        self._families[names.BREAKER_STALE_RESULTS][(name,)].inc(count)

    def lost_probes(self, name: str, count: int = 1) -> None:
        """Counts permits of crashed workers that this worker found."""
        self._families[names.BREAKER_LOST_PROBES][(name,)].inc(count)

    def store(self, name: str, *, local: bool) -> None:
        """Sets whether this worker uses a local breaker."""
        self._families[names.BREAKER_STORE_LOCAL][(name,)].set(float(local))


class BreakerMetrics(BreakerListener):
    """A listener. Every worker gets each transition; only the worker that caused it counts it.

    `on_resume` is called with the name of a backend that is no longer drained.
    """

    def __init__(
        self, families: BreakerFamilies, worker: str, on_resume: Callable[[str], None] = lambda _: None
    ) -> None:
        self._families = families
        self._worker = worker
        self._on_resume = on_resume
        self._log = structlog.get_logger("ragherd.backends")

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        """Shows the new state."""
        name, after = str(cb.name), STATES[transition.to_state]
        self._families.state(name, after)
        if transition.by == self._worker:
            self._families.changed(name, STATES[transition.from_state], after)

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: CallOutcome) -> None:
        """Counts a call."""
        self._families.call(str(cb.name), OUTCOMES[outcome])

    def not_permitted(self, cb: pybreaker.CircuitBreaker) -> None:
        """Counts a rejected call."""
        self._families.rejected(str(cb.name))

    def stale_results(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Counts results that arrived too late."""
        self._families.stale_results(str(cb.name), count)

    def lost_probes(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Counts permits whose worker crashed."""
        self._families.lost_probes(str(cb.name), count)

    def drain_changed(self, cb: pybreaker.CircuitBreaker, drained: bool) -> None:
        """Shows whether the backend is drained."""
        self._log.info("backend_drained" if drained else "backend_resumed", backend=cb.name)
        if not drained:
            self._on_resume(str(cb.name))
