"""Counts and logs what happens to the connection to one Redis server."""

from __future__ import annotations

from typing import Final

import structlog
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError

from api.observability.metrics import Metrics
from api.ports.answer_cache import Store, StoreWarning
from api.redis_store.client import SentinelsRefuse
from api.redis_store.diagnostics import ADVICE, WITHOUT_SEARCH
from api.redis_store.health_gated import RedisHealthEvents

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
