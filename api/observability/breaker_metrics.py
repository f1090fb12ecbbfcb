"""Counts what the circuit breaker of one worker does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pybreaker

from api.breaker.listener import BreakerListener
from api.breaker.state import Outcome, State, Transition
from api.observability.metric_labels import BreakerOutcome, BreakerState
from api.observability.metrics import Metrics

STATES: Mapping[State, BreakerState] = MappingProxyType(
    {State.CLOSED: "closed", State.OPEN: "open", State.HALF_OPEN: "half_open"}
)
OUTCOMES: Mapping[Outcome, BreakerOutcome] = MappingProxyType(
    {
        Outcome.OK: "successful",
        Outcome.SLOW: "slow_successful",
        Outcome.FAILED: "failed",
        Outcome.SLOW_FAILED: "slow_failed",
        Outcome.IGNORED: "ignored",
    }
)


class BreakerMetrics(BreakerListener):
    """A listener. Every worker hears of each transition; only the one that caused it counts it."""

    def __init__(self, metrics: Metrics, worker: str) -> None:
        self._metrics = metrics
        self._worker = worker

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        """Shows the new state."""
        name, after = str(cb.name), STATES[transition.to_state]
        self._metrics.breakers.state(name, after)
        if transition.by == self._worker:
            self._metrics.breakers.changed(name, STATES[transition.from_state], after)

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: Outcome) -> None:
        """Counts a call."""
        self._metrics.breakers.call(str(cb.name), OUTCOMES[outcome])

    def not_permitted(self, cb: pybreaker.CircuitBreaker) -> None:
        """Counts a rejected call."""
        self._metrics.breakers.rejected(str(cb.name))

    def stale_results(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Counts outcomes that came too late."""
        self._metrics.breakers.stale_results(str(cb.name), count)

    def lost_probes(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Counts permits whose holder is gone."""
        self._metrics.breakers.lost_probes(str(cb.name), count)
