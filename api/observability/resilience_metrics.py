"""Counts what the circuit breaker of one worker does.

Counts and logs what the bulkheads of one worker do.

Counts what goes amiss with shared generations, and logs it.

How late the event loop comes to what is due: a worker that is late answers nobody, health checks included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import pybreaker
import structlog

from api.breaker.state import BreakerListener, CallOutcome, State, Transition
from api.bulkhead.rules import BulkheadEvents, Priority, Reason
from api.observability.metric_names import BreakerOutcome, BreakerState, FlightEvent
from api.observability.metrics import Metrics
from api.single_flight.flight import FlightEvents

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

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: CallOutcome) -> None:
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


class BulkheadMetrics(BulkheadEvents):
    """One line in the log when the permits become this worker's own, and one when they are the fleet's again."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("ragherd.bulkhead")

    def admitted(self, bulkhead: str, priority: Priority, seconds: float) -> None:
        """How long it waited."""
        self._metrics.bulkhead_admitted(bulkhead, priority.value, seconds)

    def rejected(self, bulkhead: str, reason: Reason) -> None:
        """Counts it."""
        self._metrics.bulkhead_rejected(bulkhead, reason)

    def store_lost(self, bulkhead: str, limit: int) -> None:
        """The bound is this worker's alone."""
        self._log.warning("bulkhead_local", bulkhead=bulkhead, limit=limit)

    def store_found(self, bulkhead: str) -> None:
        """The bound is the fleet's."""
        self._log.info("bulkhead_shared", bulkhead=bulkhead)


class FlightMetrics(FlightEvents):
    """One line and one count for each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("ragherd.flights")

    def handed_over(self) -> None:
        """See `FlightEvents`."""
        self._note("handed_over")

    def alone(self) -> None:
        """See `FlightEvents`."""
        self._note("alone")

    def fenced(self) -> None:
        """See `FlightEvents`."""
        self._note("fenced")

    def _note(self, event: FlightEvent) -> None:
        self._metrics.flight(event)
        self._log.warning("single_flight", event_kind=event)


TICK: Final = 0.1
"""Seconds between two looks. A block of T seconds is seen as between T - 0.1 and T; shorter ones are sampled."""


class LagMetrics(Protocol):
    """Who counts it."""

    def loop_was_late(self, seconds: float) -> None: ...


class LoopLag:
    """Of the worker's event loop."""

    def __init__(self, metrics: LagMetrics) -> None:
        self._metrics = metrics

    async def keep_measuring(self) -> None:
        """Observes the lag for ever. A task of the worker's."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._metrics.loop_was_late(max(0.0, loop.time() - due))
