"""Writes the fleet's figures of each minute, and reads them for operators.

The worker with the lease, the keeper, observes every five seconds what needs one observer, and writes each minute once
it is over. If it dies, another worker takes the lease within `LEASE_SECONDS` and two rounds; the counts of the minute
are in Redis already. The time of a breaker in each state comes from the log of its state changes, so it does not
depend on the worker that writes it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from api.errors import InvalidRequest, StoreUnavailable
from api.observability.history_figures import BOUNDS_MS, Row, merged, point, read_row, row_of, state_times
from api.redis_store.stores.history_store import KEPT_HOURS, LIVE_MINUTES, MINUTE_MS

if TYPE_CHECKING:
    from api.breaker.fleet_breaker import FleetBreaker
    from api.bulkhead.fleet_bulkhead import FleetBulkhead
    from api.ports.answer_quality import QualityState
    from api.ports.coordination import LeaderLease
    from api.redis_store.stores.history_store import RedisHistory

# -- writing ----------------------------------------------------------------------------------------------------------

OBSERVE_SECONDS: Final = 5.0
LEASE_SECONDS: Final = 12.0
SETTLE_MS: Final = 2_000
"""Time after the end of a minute until all workers have sent their counts."""
AGAIN_MS: Final = 60_000
"""A minute is written again after this time, then after twice as long, and so on, for counts that were late."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The keeper's inputs. `workers` returns what each live worker reports; `pool_size`: connections of each."""

    workers: Callable[[], Awaitable[list[dict[str, str]]]]
    pool_size: int
    bulkheads: Mapping[str, FleetBulkhead]
    breakers: Mapping[str, FleetBreaker]
    quality: Callable[[], QualityState]

    async def now(self) -> tuple[dict[str, int], dict[str, str | int]]:
        """Returns numbers to add to the current minute, and fields to set in it. Raises `StoreUnavailable`."""
        workers = await self.workers()
        pools = [int(worker.get(name, 0)) for name in ("pool_active", "pool_waiting") for worker in workers]
        sums = {
            "samples": 1,
            "pool:in_use": sum(pools[: len(workers)]),
            "pool:waiting": sum(pools[len(workers) :]),
            "pool:limit": self.pool_size * len(workers),
        }
        for name, bulkhead in self.bulkheads.items():
            reading = await bulkhead.reading()
            if bulkhead.store_name == "shared":  # else it is this worker's alone
                found = {"in_use": reading.in_use, "waiting": len(reading.queue), "limit": bulkhead.limit}
                sums.update({f"bulkhead:{name}:{what}": number for what, number in found.items()})
        false_hits = orjson.dumps(self.quality().rate.figures()).decode()
        return sums, {"workers": len(workers), "false_hits": false_hits}

    async def breaker_times(self, minutes: Sequence[int], now_ms: int) -> dict[int, dict[str, dict[str, int]]]:
        """Returns how long each breaker was in each state, by minute, from the log of its state changes.

        Leaves out a breaker whose log cannot be read.
        """
        times: dict[int, dict[str, dict[str, int]]] = {minute: {} for minute in minutes}
        for name, breaker in self.breakers.items():
            with suppress(StoreUnavailable):
                state = (await breaker.store.read()).breaker.state
                log = (await breaker.store.history(LOG_ENTRIES, min(minutes) * MINUTE_MS))[::-1]
                for minute in minutes:
                    start = minute * MINUTE_MS
                    times[minute][name] = state_times(log, state, start, min(start + MINUTE_MS, now_ms))
        return times


LOG_ENTRIES: Final = 1000


class HistoryKeeper:
    """Writes the history while this worker has the lease.

    `pace`: how much less often a worker of a large fleet tries to get it. `written` is called for each new minute.
    """

    def __init__(
        self,
        store: RedisHistory,
        lease: LeaderLease,
        observed: Observed,
        pace: Callable[[], float] = lambda: 1.0,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._lease = lease
        self._observed = observed
        self._pace = pace
        self._written = written
        self._log = structlog.get_logger("ragherd.history")
        self._looked: dict[int, tuple[int, int]] = {}
        """By minute: when this keeper last wrote it or found nothing in it, and how often."""

    async def keep(self) -> None:
        """Observes and writes forever. Runs as a task of the worker."""
        while True:
            leads = False
            try:
                leads = await self.round()
            except StoreUnavailable:
                pass  # the client reports it
            except Exception:  # noqa: BLE001 - a bug in one round must not end the history
                self._log.exception("history_failed")
            pace = 1.0 if leads else self._pace() * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            await asyncio.sleep(OBSERVE_SECONDS * pace)

    async def round(self) -> bool:
        """Observes once and writes what is due. Returns whether this worker has the lease."""
        if not await self._lease.acquire(LEASE_SECONDS):
            self._looked.clear()
            return False
        now_ms = await self._store.now_ms()
        await self._store.observe(now_ms // MINUTE_MS, *await self._observed.now())
        await self._write_due(now_ms)
        return True

    async def _write_due(self, now_ms: int) -> None:
        current = now_ms // MINUTE_MS
        due = [minute for minute in range(current - LIVE_MINUTES + 1, current) if self._is_due(minute, now_ms)]
        live = await self._store.live(due)
        rows = {minute: row_of(fields) for minute, fields in live.items()}
        if rows:
            times = await self._observed.breaker_times(list(rows), now_ms)
            for minute in self._looked.keys() & rows.keys():
                if len(times[minute]) < len(self._observed.breakers):  # what is written knows more
                    due.remove(minute)
                    del rows[minute]
            texts = {minute: orjson.dumps({**row, "breaker_ms": times[minute]}) for minute, row in rows.items()}
            if not await self._store.write(texts):
                self._looked.clear()
                return
        for minute in due:
            if minute in rows and minute not in self._looked:
                self._written()
            self._looked[minute] = now_ms, self._looked.get(minute, (0, 0))[1] + 1
        for minute in [minute for minute in self._looked if minute <= current - LIVE_MINUTES]:
            del self._looked[minute]

    def _is_due(self, minute: int, now_ms: int) -> bool:
        looked = self._looked.get(minute)
        if looked is None:
            return now_ms >= (minute + 1) * MINUTE_MS + SETTLE_MS
        at_ms, times = looked
        return now_ms - at_ms >= AGAIN_MS << (times - 1)

    async def leave(self) -> None:
        """Gives the lease up, so that another worker can take it at once."""
        await self._lease.release()


MAX_STEPS: Final = 1440
"""The largest range in steps: a day of minutes."""
DEFAULT_MINUTES: Final = 60
KEPT_MINUTES: Final = KEPT_HOURS * 60


class HistoryReader:
    """Answers `GET /api/history`. `breaker`: the name of the first backend's."""

    def __init__(self, store: RedisHistory, observed: Observed, breaker: str) -> None:
        self._store = store
        self._observed = observed
        self._breaker = breaker

    async def read(
        self, start_ms: int | None, end_ms: int | None, step_seconds: int | None, buckets: bool = False
    ) -> bytes:
        """Returns the figures as JSON. By default those of the last hour, in the smallest step that is allowed.
        `buckets` adds the counts of each latency's bucket, which can be added up over points.

        Raises `InvalidRequest` for an empty range or too many points, and `StoreUnavailable`.
        """
        now_ms = await self._store.now_ms()
        end_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        start_ms = end_ms - DEFAULT_MINUTES * MINUTE_MS if start_ms is None else start_ms
        step = _step(start_ms, end_ms, step_seconds)
        asked = range(start_ms // MINUTE_MS // step, (end_ms - 1) // MINUTE_MS // step + 1)
        current = now_ms // MINUTE_MS
        first, last = max(asked[0] * step, current - KEPT_MINUTES), min(asked[-1] * step + step - 1, current)
        written, live = await self._rows(first, last, now_ms)
        return await asyncio.to_thread(_json, written, live, _Shown(self._breaker, buckets), asked, step, current)

    async def _rows(self, first: int, last: int, now_ms: int) -> tuple[dict[int, bytes], dict[int, Row]]:
        """Returns the written minutes, and the recent ones that are not written yet."""
        written = await self._store.rows(first, last) if first <= last else {}
        oldest = max(first, now_ms // MINUTE_MS - LIVE_MINUTES + 1)
        fields = await self._store.live([minute for minute in range(oldest, last + 1) if minute not in written])
        live = {minute: row_of(of_minute) for minute, of_minute in fields.items()}
        if live:
            times = await self._observed.breaker_times(list(live), now_ms)
            for minute, row in live.items():
                row["breaker_ms"] = times[minute]
        return written, live


def _step(start_ms: int, end_ms: int, seconds: int | None) -> int:
    """Returns the step in minutes. Raises `InvalidRequest`."""
    if start_ms >= end_ms:
        raise InvalidRequest("from: must be before to, and not in the future.")
    minutes = (end_ms - start_ms) // MINUTE_MS
    smallest = max(1, -(-minutes // MAX_STEPS))
    if seconds is None:
        return smallest
    if seconds // 60 < smallest:
        raise InvalidRequest(f"step: must be at least {smallest * 60} for this range ({MAX_STEPS} steps).")
    return seconds // 60


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the API shows of a point: the first backend's `breaker`, and whether it shows the `buckets`."""

    breaker: str
    buckets: bool

    def point(self, first: int, found: Sequence[Row], over: int) -> dict[str, Any]:
        """Returns a point that begins with the minute `first`. `over`: how many of its minutes are over."""
        at = datetime.fromtimestamp(first * 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if not found:
            return {"at": at, "gap": True}
        missing = max(0, over - len(found))
        row = merged(found)
        counts = {"latency_buckets_ms": row.get("latency", {})} if self.buckets else {}
        return point(at, row, self.breaker) | counts | ({"missing_minutes": missing} if missing else {})


def _json(
    written: Mapping[int, bytes], live: Mapping[int, Row], shown: _Shown, asked: range, step: int, current: int
) -> bytes:
    """Returns the points `asked` for, each of `step` minutes. Runs in a thread, because two days take some 100 ms."""
    rows = {**{minute: read_row(text) for minute, text in written.items()}, **live}
    by_point: dict[int, list[Row]] = {}
    for minute in sorted(minute for minute, row in rows.items() if row):
        by_point.setdefault(minute // step, []).append(rows[minute])
    points = []
    for number in asked:
        found, over = by_point.get(number, []), min(number * step + step, current) - number * step
        if found or over:  # nothing is known yet of a minute that has just begun
            points.append(shown.point(number * step, found, over) | ({"partial": True} if over < step else {}))
    bounds = {"latency_bounds_ms": BOUNDS_MS} if shown.buckets else {}
    return orjson.dumps({"step_seconds": step * 60, **bounds, "points": points})
