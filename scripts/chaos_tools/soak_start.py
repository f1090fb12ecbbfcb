"""Begins a soak with what would fill up only after hours, so that a slope shows what grows for ever."""

from __future__ import annotations

import time
from typing import Any, Final

from redis import Redis

from api.ports.answer_quality import Evidence, Label, PolicyName, Verdict, Versions
from api.ports.audit import AuditEntry, AuditRecord
from api.redis_store.keys import Keys
from api.redis_store.stores import audit
from api.redis_store.stores.audit import KEPT
from api.redis_store.stores.history_store import LIVE_LIFETIME_MS, LIVE_MINUTES, MINUTE_MS, minute_name
from api.redis_store.stores.label_store import LIFETIME_MS, POOLED, as_fields

SETTLING: Final = 120
"""Seconds that an answer's key for votes lives in a soak, and so the time until their number is level."""
SETTINGS: Final = {"FEEDBACK_TTL": f"{SETTLING}"}
SCOPE: Final = f"{'0' * 10}-{'0' * 24}"
"""A scope as long as any."""
RENEWALS: Final = 200
RUSH: Final = 300.0
"""Seconds without pauses at first. More requests at once than later fill caches, pools and what malloc keeps."""


def fill(client: Redis) -> None:
    """Fills the pool of labels, of which one worker keeps a copy, the audit log, and the minutes of the last hour."""
    _add_labels(client, POOLED)
    _fill_audit(client)
    _fill_minutes(client)


def renew_labels(client: Redis, seconds: float) -> None:
    """Replaces the pool of labels once, bit by bit: in the memory of a worker, what is new lies between what is old."""
    for _ in range(RENEWALS):
        _add_labels(client, POOLED // RENEWALS)
        time.sleep(seconds / RENEWALS)


def _add_labels(client: Redis, count: int) -> None:
    """Adds labels of which nothing is learned, because their versions are not those of the fleet."""
    evidence, versions, pool = Evidence(0.95), Versions("earlier", comparator="earlier"), Keys().labels
    with client.pipeline(transaction=False) as pipeline:
        for number in range(count):
            label = Label(
                evidence, Verdict.SAME, "miss", False, "semantic", PolicyName.GUARDED, versions, entry=f"{number:032x}"
            )
            fields: dict[Any, Any] = as_fields(SCOPE, "birch", label)
            pipeline.xadd(pool, fields, maxlen=POOLED, approximate=False)
        pipeline.pexpire(pool, LIFETIME_MS)
        pipeline.execute()


def _fill_audit(client: Redis) -> None:
    told = {"breaker": "ollama"}
    record = AuditRecord("breaker.force-open", "5c6a5d9a", "admin", "0" * 32, "replica:12345:abcd", told)
    entry: AuditEntry | None = None
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(KEPT):
            entry = AuditEntry.after(entry, record, int(time.time() * 1000))
            pipeline.xadd(Keys().audit, audit.as_fields(entry))
        pipeline.execute()


def _fill_minutes(client: Redis) -> None:
    now = int(time.time() * 1000)
    with client.pipeline(transaction=False) as pipeline:
        for ago in range(1, LIVE_MINUTES):
            key = Keys().history_minute(minute_name(now // MINUTE_MS - ago))
            pipeline.hset(key, mapping={f"latency:hit:{bucket}": 1 for bucket in range(60)})
            pipeline.pexpire(key, LIVE_LIFETIME_MS - ago * MINUTE_MS)
        pipeline.execute()
