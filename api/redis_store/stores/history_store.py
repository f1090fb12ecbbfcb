"""Stores the fleet's figures by minute for 48 hours, and the latest outcomes of questions for the live page.

Every worker adds its counts to the hash of the current minute, together with the other counters (`CacheCounters`), so a
count needs no leader and a lost reply counts nothing twice. One worker, the keeper, adds what needs a single observer.
Once a minute is over, the keeper writes it as one JSON value to the hash of its hour: sixty fields, small to keep and
quick to read. The keeper has a lease by Redis's clock. Each of its writes checks the lease, so a keeper that was paused
cannot overwrite what its successor wrote.

Minutes are counted since 1970 by Redis's clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable, Undecryptable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms, script

MINUTE_MS: Final = 60_000
LIVE_MINUTES: Final = 60
"""How many minutes can still be counted and written. After a longer outage of Redis they are lost."""
LIVE_LIFETIME_MS: Final = LIVE_MINUTES * MINUTE_MS
KEPT_HOURS: Final = 48
HOUR_LIFETIME_MS: Final = KEPT_HOURS * 60 * MINUTE_MS


def _time(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC)


def hour_name(minute: int) -> str:
    """The hour of a minute in UTC: `2026-11-28T15`."""
    return _time(minute).strftime("%Y-%m-%dT%H")


def minute_name(minute: int) -> str:
    """A minute in UTC: `2026-11-28T15-07`."""
    return _time(minute).strftime("%Y-%m-%dT%H-%M")


class RedisHistory:
    """The history as one worker reads and writes it. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._redis = redis.of(keys.history_lease)
        self._keys = keys
        self._worker = worker
        self._observe = script(redis.client, "stores/history_store", "observe")
        self._write = script(redis.client, "stores/history_store", "write")

    async def now_ms(self) -> int:
        """Returns Redis's clock."""
        return await self._redis.run("history", now_ms)

    async def observe(self, minute: int, sums: Mapping[str, int], fields: Mapping[str, str | int]) -> bool:
        """Adds `sums` to a minute and sets its `fields`. Returns False if another worker has the lease."""
        keys = [self._keys.history_lease, self._keys.history_minute(minute_name(minute))]
        arguments: list[str | int] = [self._worker, LIVE_LIFETIME_MS, len(sums), *_flat(sums), *_flat(fields)]
        return bool(await self._redis.run("history", partial(self._observe, keys, arguments)))

    async def live(self, minutes: Sequence[int]) -> dict[int, dict[str, str]]:
        """Returns what was counted in these minutes. Those without a count are absent."""

        async def ask(client: Any) -> list[dict[bytes, bytes]]:
            async with client.pipeline(transaction=False) as pipe:
                for minute in minutes:
                    pipe.hgetall(self._keys.history_minute(minute_name(minute)))
                found: list[dict[bytes, bytes]] = await pipe.execute()
                return found

        replies = await self._redis.run("history", ask) if minutes else []
        return {minute: _texts(reply) for minute, reply in zip(minutes, replies, strict=True) if reply}

    async def write(self, rows: Mapping[int, bytes]) -> bool:
        """Writes the figures of minutes that are over. Returns False if another worker has the lease."""
        keys = [self._keys.history_lease]
        arguments: list[Any] = [self._worker, HOUR_LIFETIME_MS]
        for minute, row in rows.items():
            hour = self._keys.history_hour(hour_name(minute))
            if hour not in keys:
                keys.append(hour)
            arguments += (keys.index(hour) + 1, f"{minute % 60:02d}", row)
        return bool(await self._redis.run("history", partial(self._write, keys, arguments)))

    async def rows(self, first: int, last: int) -> dict[int, bytes]:
        """Returns the figures of the minutes from `first` to `last`. Those that were not written are absent.

        Reads hour by hour: a single reply for two days would keep Redis and this worker busy for too long.
        """
        found: dict[int, bytes] = {}
        for hour in range(first // 60, last // 60 + 1):
            key = self._keys.history_hour(hour_name(hour * 60))
            fields: dict[bytes, bytes] = await self._redis.run("history", lambda client, key=key: client.hgetall(key))  # type: ignore[misc]
            written = {hour * 60 + int(minute): row for minute, row in fields.items() if minute.isdigit()}
            found.update({minute: row for minute, row in written.items() if first <= minute <= last})
        return found


def _flat(pairs: Mapping[str, Any]) -> Iterable[Any]:
    return (part for pair in pairs.items() for part in pair)


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


# -- the latest outcomes -----------------------------------------------------------------------------------------------

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
        self._texts = redis.texts
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
        outcomes = [_shown(entry.decode(), self._decrypted(fields)) for entry, fields in entries]
        return outcomes if self._questions else [{**outcome, "question": None} for outcome in outcomes]

    def _decrypted(self, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Leaves out a question that cannot be decrypted."""
        if b"question" not in fields or not self._questions:
            return fields
        with suppress(Undecryptable):
            return {**fields, b"question": self._texts.decrypt(self._key, "question", fields[b"question"])}
        return {name: value for name, value in fields.items() if name != b"question"}

    def _fields(self, outcome: Outcome) -> dict[Any, Any]:
        status, kind, similarity, seconds, model, error, question = outcome
        ms = None if seconds is None else round(seconds * 1000, 3)
        near = None if similarity is None else round(similarity, 4)
        values = (status, kind, near, ms, model, error, question[:MOST_CHARACTERS], self._worker)
        given: dict[Any, Any] = {
            name: value for name, value in zip(FIELDS, values, strict=True) if value not in (None, "")
        }
        if "question" in given:
            given["question"] = self._texts.encrypt(self._key, "question", str(given["question"]))
        return given


def _shown(entry: str, fields: dict[bytes, bytes]) -> dict[str, Any]:
    texts = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
    at = datetime.fromtimestamp(int(entry.partition("-")[0]) / 1000, UTC)
    numbers = {name: float(texts[name]) if name in texts else None for name in ("similarity", "ms")}
    named = {name: texts.get(name) for name in ("kind", "model", "error", "question", "worker")}
    return {"at": at.isoformat(timespec="milliseconds"), "status": texts.get("status", ""), **named, **numbers}
