"""Stores the fleet's figures by minute for 48 hours.

Every worker adds its counts to the hash of the current minute, together with the other counters (`CacheCounters`), so a
count needs no leader and a lost reply counts nothing twice. One worker, the keeper, adds what needs a single observer.
Once a minute is over, the keeper writes it as one JSON value to the hash of its hour: sixty fields, small to keep and
quick to read. The keeper has a lease by Redis's clock. Each of its writes checks the lease, so a keeper that was paused
cannot overwrite what its successor wrote.

Minutes are counted since 1970 by Redis's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

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
