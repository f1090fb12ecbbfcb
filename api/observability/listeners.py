"""Counts and logs what happens to one circuit breaker, and to the connection to one Redis server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import pybreaker
import structlog
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError

from api.breaker.state import BreakerListener, CallOutcome, State, Transition
from api.observability.metric_names import BreakerOutcome, BreakerState
from api.observability.metrics import Metrics
from api.ports.answer_cache import Store, StoreWarning
from api.redis_store.client import SentinelsRefuse
from api.redis_store.diagnostics import ADVICE, WITHOUT_SEARCH
from api.redis_store.health_gated import RedisHealthEvents

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
    """A listener. Every worker gets each transition; only the worker that caused it counts it.

    `on_resume` is called with the name of a backend that is no longer drained.
    """

    def __init__(self, metrics: Metrics, worker: str, on_resume: Callable[[str], None] = lambda _: None) -> None:
        self._metrics = metrics
        self._worker = worker
        self._on_resume = on_resume
        self._log = structlog.get_logger("ragherd.backends")

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
        """Counts results that arrived too late."""
        self._metrics.breakers.stale_results(str(cb.name), count)

    def lost_probes(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Counts permits whose worker crashed."""
        self._metrics.breakers.lost_probes(str(cb.name), count)

    def drain_changed(self, cb: pybreaker.CircuitBreaker, drained: bool) -> None:
        """Shows whether the backend is drained."""
        self._log.info("backend_drained" if drained else "backend_resumed", backend=cb.name)
        if not drained:
            self._on_resume(str(cb.name))


REASONS_TOLD: Final = 5
"""Most log lines for one outage."""
URLS: Final[dict[Store, str]] = {"main": "REDIS_URL", "breaker": "BREAKER_REDIS_URL"}


class RedisEvents(RedisHealthEvents):
    """Logs one line when Redis, or a shard, is lost, and one when it is back.

    Also one line for each new reason why it stays unavailable. Between them only the counter moves. Operations on
    BREAKER_REDIS_URL are counted as `breaker_...`.
    """

    def __init__(self, metrics: Metrics, store: Store = "main", shard: str = "") -> None:
        self._metrics = metrics
        self._store: Store = store
        self._told: set[str] = set()
        log = structlog.get_logger("ragherd.redis").bind(setting=URLS[store])
        self._log = log.bind(shard=shard) if shard else log

    def failed(self, operation: str, error: BaseException) -> None:
        """Counts a failed operation."""
        own = self._store == "main" or operation.startswith(("breaker", "bulkhead"))
        self._metrics.redis_failed(operation if own else f"breaker_{operation}")
        self._log.debug("redis_failed", operation=operation, error=_text(error))

    def lost(self, operation: str, error: BaseException) -> None:
        """Logs that answers continue without Redis."""
        text = _text(error)
        # Many commands fail at once with different messages: after the first, only the health check's reason is logged.
        is_new = text not in self._told and len(self._told) < REASONS_TOLD
        if is_new and (not self._told or operation in {"ping", "recovery"}):
            self._told.add(text)
            self._log.warning("redis_lost", operation=operation, error=text, **_advice(error))

    def found(self) -> None:
        """Logs that Redis is back."""
        self._told.clear()
        self._log.info("redis_found")

    def mismatched(self, message: str) -> None:
        """Logs that the URL's scheme does not match the server."""
        self._log.error("redis_url_mismatch", message=message)

    def warned(self, warning: StoreWarning, begins: bool) -> None:
        """Logs that a warning begins or ends."""
        if not begins:
            self._log.info("redis_warning_over", warning=warning.name)
        elif warning.name == WITHOUT_SEARCH:
            self._log.error("redis_without_search", message=warning.advice)
        else:
            self._log.warning("redis_warning", warning=warning.name, message=warning.advice)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _advice(error: BaseException) -> dict[str, str]:
    """Advice, if the error tells what to do."""
    if isinstance(error, ReadOnlyError):
        return {"message": ADVICE["read_only"]}
    if isinstance(error, SentinelsRefuse):
        return {"message": "The Sentinels refuse access: check REDIS_SENTINEL_PASSWORD and REDIS_SENTINEL_USERNAME."}
    if isinstance(error, NoPermissionError):
        return {"message": "The Redis user lacks permissions: `ragherd redis-acl` prints the ACL rule it needs."}
    if isinstance(error, AuthenticationError):
        return {"message": "Redis refuses the user name or password: check REDIS_URL."}
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return {"message": "The server's certificate is not trusted or has another name: check REDIS_CA_FILE."}
    if "CERTIFICATE_REQUIRED" in str(error) or "ALERT" in str(error):
        return {"message": "The server refuses this worker's certificate: check REDIS_CERT_FILE."}
    return {}
