"""Counts what goes amiss with shared generations, and logs it."""

from __future__ import annotations

import structlog

from api.flights.events import FlightEvents
from api.observability.metric_labels import FlightEvent
from api.observability.metrics import Metrics


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
