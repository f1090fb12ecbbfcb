"""Who counts and logs what operators do to the cache: Prometheus, counters in Redis for the fleet, the log."""

from __future__ import annotations

import structlog

from api.observability.metrics import Metrics
from api.observability.query_events import FleetCounters
from api.ports.sweep import Swept
from api.query.invalidate import Invalidation


class CacheEvents:
    """An `InvalidationEvents` and a `WarmUpEvents`. A question's text is not logged: it may be private."""

    def __init__(self, metrics: Metrics, counters: FleetCounters) -> None:
        self._metrics = metrics
        self._counters = counters
        self._log = structlog.get_logger("ragherd.cache")

    def invalidated(self, asked: Invalidation, swept: Swept) -> None:
        """Entries were deleted."""
        self._counters.add("invalidations", swept.deleted)
        self._metrics.cache_invalidated(asked.kind, swept.deleted)
        facts = {"entry": asked.entry, "source": asked.source, "tenant": asked.tenant, "model": asked.model}
        given = {name: value for name, value in facts.items() if value is not None}
        self._log.warning("cache_invalidated", by=asked.kind, matched=swept.matched, deleted=swept.deleted, **given)

    def stored_ahead(self) -> None:
        """An answer was stored before anybody asked for it."""
        self._metrics.cache_stored()

    def warm_up_taken(self, job: str) -> None:
        """This worker goes on with a warm-up."""
        self._log.info("cache_warm_up", job=job)

    def warm_up_failed(self, job: str, error: str) -> None:
        """A question of a warm-up has failed for good."""
        self._log.warning("cache_warm_up_question_failed", job=job, error=error)
