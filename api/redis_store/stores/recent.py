"""The latest outcomes of questions, for the live page. Key: the stream `rag:recent`.

A request only appends to a list. Each worker writes what it noted once a second, the newest first if there was more
than fits. While Redis is down, outcomes are dropped: the page shows only recent ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys

WRITE_SECONDS: Final = 1.0
SHOWN: Final = 20
"""Outcomes that the page shows."""
MOST_AT_ONCE: Final = 10
"""Outcomes that a worker writes per second. A busy fleet shows a sample."""
LIFETIME_MS: Final = 24 * 3600 * 1000
MOST_CHARACTERS: Final = 300
"""Characters of a question that are kept."""


Outcome = tuple[str, str | None, float | None, float | None, str, str, str]
"""Status, kind, similarity, seconds, model, error, question.

The status is a cache status, `error` or `left`. Kind and similarity are those of a cached answer. The question is empty
unless LOG_QUESTIONS allows texts. A plain tuple, because every request makes one.
"""
FIELDS: Final = ("status", "kind", "similarity", "ms", "model", "error", "question", "worker")


class RecentOutcomes:
    """Writes and reads the latest outcomes of the fleet. `note` does no I/O.

    `questions`: this worker may show questions, also those that others kept.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str, *, questions: bool) -> None:
        self._key = keys.recent
        self._redis = redis.of(self._key)
        self._worker = worker
        self._questions = questions
        self._noted: deque[Outcome] = deque(maxlen=MOST_AT_ONCE)
        self.note = self._noted.append

    async def keep_writing(self) -> None:
        """Writes forever. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Writes what was noted."""
        if not self._noted:
            return
        outcomes = list(self._noted)
        self._noted.clear()

        async def add(client: Redis) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for outcome in outcomes:
                    pipe.xadd(self._key, self._fields(outcome), maxlen=SHOWN, approximate=False)
                pipe.pexpire(self._key, LIFETIME_MS)
                await pipe.execute()

        try:
            await self._redis.run("recent", add)
        except StoreUnavailable:
            return

    async def latest(self) -> list[dict[str, Any]]:
        """Returns the latest outcomes of all workers, newest first. Raises `StoreUnavailable`."""
        entries: Any = await self._redis.run("recent", lambda client: client.xrevrange(self._key, count=SHOWN))
        outcomes = [_shown(entry.decode(), fields) for entry, fields in entries]
        return outcomes if self._questions else [{**outcome, "question": None} for outcome in outcomes]

    def _fields(self, outcome: Outcome) -> dict[Any, Any]:
        status, kind, similarity, seconds, model, error, question = outcome
        ms = None if seconds is None else round(seconds * 1000, 3)
        near = None if similarity is None else round(similarity, 4)
        values = (status, kind, near, ms, model, error, question[:MOST_CHARACTERS], self._worker)
        return {name: value for name, value in zip(FIELDS, values, strict=True) if value not in (None, "")}


def _shown(entry: str, fields: dict[bytes, bytes]) -> dict[str, Any]:
    texts = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
    at = datetime.fromtimestamp(int(entry.partition("-")[0]) / 1000, UTC)
    numbers = {name: float(texts[name]) if name in texts else None for name in ("similarity", "ms")}
    named = {name: texts.get(name) for name in ("kind", "model", "error", "question", "worker")}
    return {"at": at.isoformat(timespec="milliseconds"), "status": texts.get("status", ""), **named, **numbers}
