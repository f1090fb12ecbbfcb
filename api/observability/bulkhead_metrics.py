"""Counts and logs what the bulkheads of one worker do."""

from __future__ import annotations

import structlog

from api.bulkhead.events import BulkheadEvents
from api.bulkhead.state import Reason
from api.bulkhead.ticket import Priority
from api.observability.metrics import Metrics


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
