"""The metrics of the circuit breakers: a part of `Metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import get_args

from api.observability import metric_names as names
from api.observability.metric_family import MetricFamily
from api.observability.metric_labels import BreakerOutcome, BreakerState
from api.observability.metric_spec import MetricSpec


class BreakerFamilies:
    """Each breaker is a value of the label `name`."""

    def __init__(self, families: Mapping[MetricSpec, MetricFamily]) -> None:
        self._families = families

    def known(self, name: str) -> None:
        """A breaker exists: its counters begin at zero. Its state is not known yet."""
        for outcome in get_args(BreakerOutcome):
            self._families[names.BREAKER_CALLS].begin(name, outcome)
        for before, after in permutations(get_args(BreakerState), 2):
            self._families[names.BREAKER_TRANSITIONS].begin(name, before, after)
        for spec in (names.BREAKER_NOT_PERMITTED, names.BREAKER_STALE_RESULTS, names.BREAKER_LOST_PROBES):
            self._families[spec].begin(name)
        self.store(name, local=False)

    def state(self, name: str, state: BreakerState) -> None:
        """The breaker is in this state. The pod shows what the last worker to learn of it says."""
        for other in get_args(BreakerState):
            self._families[names.BREAKER_STATE][name, other].set(float(other == state))

    def changed(self, name: str, before: BreakerState, after: BreakerState) -> None:
        """This worker caused a change of state."""
        self._families[names.BREAKER_TRANSITIONS][name, before, after].inc()

    def call(self, name: str, outcome: BreakerOutcome) -> None:
        """A call of this worker ended."""
        self._families[names.BREAKER_CALLS][name, outcome].inc()

    def rejected(self, name: str) -> None:
        """A call of this worker was not permitted."""
        self._families[names.BREAKER_NOT_PERMITTED][(name,)].inc()

    def rates(self, name: str, *, failure: float, slow: float) -> None:
        """The rates of the window, in percent, as just read."""
        self._families[names.BREAKER_FAILURE_RATE][(name,)].set(failure)
        self._families[names.BREAKER_SLOW_CALL_RATE][(name,)].set(slow)

    def stale_results(self, name: str, count: int = 1) -> None:
        """Outcomes of this worker came after their epoch had ended."""
        self._families[names.BREAKER_STALE_RESULTS][(name,)].inc(count)

    def lost_probes(self, name: str, count: int = 1) -> None:
        """This worker found permits whose holder is gone."""
        self._families[names.BREAKER_LOST_PROBES][(name,)].inc(count)

    def store(self, name: str, *, local: bool) -> None:
        """Whether this worker goes on without the shared store."""
        self._families[names.BREAKER_STORE_LOCAL][(name,)].set(float(local))
