"""Counts what fails in Redis, and logs when it is lost and found."""

from __future__ import annotations

import structlog

from api.observability.metrics import Metrics
from api.redis_store.gate import GateEvents


class RedisEvents(GateEvents):
    """One line when Redis, or a shard of it, is lost and one when it is back; in between only the counter moves."""

    def __init__(self, metrics: Metrics, shard: str = "") -> None:
        self._metrics = metrics
        log = structlog.get_logger("ragherd.redis")
        self._log = log.bind(shard=shard) if shard else log

    def failed(self, operation: str, error: BaseException) -> None:
        """An operation failed."""
        self._metrics.redis_failed(operation)
        self._log.debug("redis_failed", operation=operation, error=str(error) or type(error).__name__)

    def lost(self, operation: str, error: BaseException) -> None:
        """Answers go on without the cache."""
        self._log.warning("redis_lost", operation=operation, error=str(error) or type(error).__name__)

    def found(self) -> None:
        """The shared memory is there."""
        self._log.info("redis_found")
