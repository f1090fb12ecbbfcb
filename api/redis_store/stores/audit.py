"""Stores the audit log in one stream. It has no lifetime, or Redis might evict it; the oldest entries go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.audit import FIRST, AuditEntry, AuditRecord
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import milliseconds, script

KEPT: Final = 10_000
"""Entries that are kept at least."""
TRIES: Final = 100
"""Attempts to append an entry. Each one that fails means that another worker has appended one."""


class RedisAuditLog:
    """The fleet's audit log."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.audit)
        self._key = keys.audit
        self._append = script(redis.client, "stores/audit", "append")

    async def append(self, record: AuditRecord) -> AuditEntry:
        """Adds an entry to the end of the chain. Raises `StoreUnavailable`."""
        for _ in range(TRIES):
            last, now_ms = await self._last()
            entry = AuditEntry.after(last, record, now_ms)
            fields = [part for field in as_fields(entry).items() for part in field]
            arguments: list[Any] = [entry.previous, FIRST, KEPT, *fields]
            reply: Any = await self._redis.run("audit", partial(self._append, [self._key], arguments))
            if reply:
                return entry
        raise StoreUnavailable("Too many admin actions at once to record another.")

    async def _last(self) -> tuple[AuditEntry | None, int]:
        """Returns the last entry, and Redis's clock."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.xrevrange(self._key, count=1)
                pipe.time()
                replies: list[Any] = await pipe.execute()
                return replies

        found, time = await self._redis.run("audit", read)
        return (_read(*found[0]) if found else None), milliseconds(time)

    async def page(self, limit: int, before: str | None = None) -> Sequence[AuditEntry]:
        """Returns entries, newest first. Raises `StoreUnavailable`."""
        if before is not None and not any(map(int, before.split("-"))):
            return []  # nothing comes before 0-0, and Redis refuses to look
        end = "+" if before is None else f"({before}"
        found: Any = await self._redis.run("audit", lambda client: client.xrevrange(self._key, end, "-", limit))
        return [_read(*one) for one in found]


def as_fields(entry: AuditEntry) -> dict[Any, Any]:
    """Returns the fields of an entry in the stream."""
    record = entry.record
    return {
        "number": entry.number,
        "at_ms": entry.at_ms,
        "action": record.action,
        "by": record.by,
        "role": record.role,
        "request": record.request,
        "worker": record.worker,
        "details": orjson.dumps(record.details, option=orjson.OPT_SORT_KEYS),
        "previous": entry.previous,
        "hash": entry.hash,
    }


def _read(stream_id: bytes, raw: Mapping[bytes, bytes]) -> AuditEntry:
    """Reads an entry. What someone has changed by hand reads as other values, whose hash is wrong."""
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in raw.items()}
    action, by, role, request, worker = (fields.get(name, "") for name in ("action", "by", "role", "request", "worker"))
    record = AuditRecord(action, by, role, request, worker, _details(fields.get("details", "")))
    number, at_ms = (_number(fields.get(name, "")) for name in ("number", "at_ms"))
    return AuditEntry(number, at_ms, record, fields.get("previous", ""), fields.get("hash", ""), stream_id.decode())


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _details(text: str) -> Mapping[str, str]:
    try:
        found = orjson.loads(text)
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
