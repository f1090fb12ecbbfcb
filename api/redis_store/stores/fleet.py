"""Stores what workers report to the fleet (heartbeats, counters, retries), and leader leases.

Counters reach Redis in numbered batches, and what the worker counted for the history goes with them. If a reply is
lost, the worker sends the same batch again, and Redis adds it once. A killed worker loses at most what it counted in
the last `FLUSH_SECONDS`.

A lease is a key with a lifetime that one worker of the fleet has at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import now_ms, script
from api.redis_store.stores.experiments import KEPT_MS
from api.redis_store.stores.history_store import LIVE_LIFETIME_MS, MINUTE_MS, minute_name

HEARTBEAT_SECONDS: Final = 1.0
LEASE_MS: Final = 5_000
FULL_PACE_WORKERS: Final = 4
"""Up to this many workers check for work at full pace. A larger fleet checks as often in total."""
SLOWEST: Final = 8.0
"""The largest factor, so that a fleet that shrinks does not wait for long."""


class WorkerRegistry:
    """The live workers of all replicas. Each renews a lease; a dead worker disappears when its lease expires.

    `facts` returns what this worker reports with each heartbeat: flat fields with readable values.
    """

    def __init__(
        self, redis: HealthGatedClients, keys: Keys, worker: str, facts: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._redis = redis.of(keys.workers)
        self._keys = keys
        self._worker = worker
        self._facts = facts
        self._renewing = script(redis.client, "stores/fleet", "renew_worker")
        self.known_live = 1
        """Number of live workers at the last heartbeat."""

    @property
    def pace(self) -> float:
        """The factor by which this worker checks less often for work that any worker can do."""
        return min(max(1.0, self.known_live / FULL_PACE_WORKERS), SLOWEST)

    async def heartbeat(self) -> None:
        """Renews this worker's lease. Raises `StoreUnavailable`."""
        await self._redis.run("heartbeat", self._renew)

    async def live(self) -> list[dict[str, str]]:
        """Returns what each live worker last reported, sorted by id. This worker's report is current."""
        await self.heartbeat()
        found = await self._redis.run("list_workers", self._list)
        return sorted(found, key=lambda worker: worker["id"])

    async def leave(self) -> None:
        """Removes this worker. If Redis is down, its lease expires by itself."""
        try:
            await self._redis.run("leave", self._remove)
        except StoreUnavailable:
            return

    async def keep_renewing(self) -> None:
        """Sends heartbeats forever, with jitter. Runs as a task of the worker."""
        while True:
            with suppress(StoreUnavailable):  # the next heartbeat comes by itself
                await self.heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def _renew(self, client: Redis) -> None:
        fields = (part for pair in self._facts().items() for part in pair)
        keys = [self._keys.worker(self._worker), self._keys.workers]
        self.known_live = int(await self._renewing(keys, [self._worker, LEASE_MS, *fields], client))

    async def _list(self, client: Redis) -> list[dict[str, str]]:
        ids: Any = await client.zrangebyscore(self._keys.workers, await now_ms(client), "+inf")
        async with client.pipeline(transaction=False) as pipe:
            for worker in ids:
                pipe.hgetall(self._keys.worker(worker.decode()))
            hashes = await pipe.execute()
        return [{k.decode(): v.decode() for k, v in fields.items()} for fields in hashes if fields]

    async def _remove(self, client: Redis) -> None:
        async with client.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker(self._worker))
            pipe.zrem(self._keys.workers, self._worker)
            await pipe.execute()


FLUSH_SECONDS: Final = 0.25
COUNTER_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
BATCH_MS: Final = 3600 * 1000
"""Time that Redis remembers a worker's last batch. A batch that is sent again later may count twice."""
EVICTION_KEYS_MS: Final = 60_000
"""Minimum lifetime of the eviction keys. A new entry extends it to its own."""
BATCH: Final = 500
"""Entries per script call."""


class UnsentCounts(Protocol):
    """A worker's counts for the history that Redis does not have yet, by minute of Redis's clock."""

    @property
    def is_empty(self) -> bool: ...

    def turn(self, minute: int | None, *, up: bool) -> None: ...

    def take(self, minute: int) -> dict[int, dict[str, int]]: ...


@dataclass(frozen=True, slots=True)
class _Batch:
    """The content of one batch. `minutes`: counts for the history, by minute. `figures`: counts of experiments."""

    number: int
    counts: Counter[str]
    minutes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class CacheCounters:
    """Counters of the cache, the uses of entries, and the counts of the history and of experiments.

    While Redis is down, the last known totals are used.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str, history: UnsentCounts | None = None) -> None:
        self._clients = redis
        self._redis = redis.of(keys.cache_stats)
        self._keys = keys
        self._pending: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self._history = history
        self.of_experiments: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Pending counts of experiments, by experiment and name."""
        self._batch: _Batch | None = None
        self._batches = 0
        self._batch_key = keys.cache_stats_batch(worker)
        self._add = script(redis.client, "stores/fleet", "add_counters")
        self._touch = script(redis.client, "stores/cache/answers", "touch")
        self._known: dict[str, int] = {}
        self._flushing = asyncio.Lock()
        self._ahead_ms: float | None = None
        """Redis's clock minus this worker's monotonic one, as of the last reply."""

    @property
    def are_shared(self) -> bool:
        """True if counts reach the fleet now."""
        return self._redis.is_up

    def add(self, name: str, count: int = 1) -> None:
        """Counts. No I/O."""
        if count:
            self._pending[name] += count

    def touch(self, entry: str) -> None:
        """Counts a use of an entry. No I/O."""
        self._touched[entry] += 1

    async def totals(self) -> Mapping[str, int]:
        """Returns the fleet's counts, including this worker's up to now."""
        await self.flush()
        try:
            raw: Mapping[Any, Any] = await self._redis.run(
                "read_counters", lambda client: client.hgetall(self._keys.cache_stats)
            )
            # Values of later releases may not be whole numbers.
            self._known = {name.decode(): int(value) for name, value in raw.items() if value.isdigit()}
        except StoreUnavailable:
            return Counter(self._known) + self._pending + (self._batch.counts if self._batch else Counter())
        return self._known

    async def flush(self) -> None:
        """Sends pending counts. Keeps them if Redis is down. Finishes even if cancelled."""
        if self._is_pending or self._batch or self._touched or self._flushing.locked():
            await asyncio.shield(asyncio.create_task(self._flush()))

    @property
    def _is_pending(self) -> bool:
        counted = self._history is not None and not self._history.is_empty and self._minute is not None
        return bool(self._pending or self.of_experiments) or counted

    @property
    def _minute(self) -> int | None:
        """The current minute by Redis's clock; None before its first reply."""
        return None if self._ahead_ms is None else int(self._ahead_ms + time.monotonic() * 1000) // MINUTE_MS

    async def _flush(self) -> None:
        async with self._flushing:
            with suppress(StoreUnavailable):  # kept and sent again
                if self._batch:
                    await self._send(self._batch)
                if self._is_pending and self.are_shared:
                    await self._send(self._begin_batch())
            await self._send_touched_all()

    def _begin_batch(self) -> _Batch:
        self._batches += 1
        minute = self._minute
        minutes = self._history.take(minute) if self._history is not None and minute is not None else {}
        self._batch = _Batch(self._batches, self._pending, minutes, self.of_experiments)
        self._pending, self.of_experiments = Counter(), defaultdict(Counter)
        return self._batch

    async def _send(self, batch: _Batch) -> None:
        """Sends a batch. It is kept until the reply arrives, because Redis may not have received it."""
        keys = [self._keys.cache_stats, self._batch_key]
        arguments: list[str | int] = []
        for minute, counts in batch.minutes.items():
            if minute * MINUTE_MS + LIVE_LIFETIME_MS > self._now_ms():
                keys.append(self._keys.history_minute(minute_name(minute)))
                arguments += _numbered(len(keys), counts)
        minutes = len(keys) - 2
        for experiment, counts in batch.figures.items():
            keys.append(self._keys.experiment(experiment)[1])
            arguments += _numbered(len(keys), counts)
        lifetimes = (COUNTER_LIFETIME_MS, LIVE_LIFETIME_MS, KEPT_MS)
        counters = [part for pair in batch.counts.items() for part in pair]
        arguments = [batch.number, BATCH_MS, *lifetimes, minutes, len(batch.counts), *counters, *arguments]
        reply: Any = await self._redis.run("flush_counters", lambda client: self._add(keys, arguments, client))
        self._ahead_ms = int(reply) - time.monotonic() * 1000
        self._batch = None

    def _now_ms(self) -> float:
        return (self._ahead_ms or 0) + time.monotonic() * 1000

    async def _send_touched_all(self) -> None:
        touched, self._touched = self._touched, Counter()
        for part in self._keys.partitions if touched else ():
            of_part = [(entry, uses) for entry, uses in touched.items() if part.holds(entry)]
            with suppress(StoreUnavailable):  # losing some uses only lowers an entry's score a little
                await self._send_touched(part, of_part)

    async def _send_touched(self, part: CacheKeys, touched: Sequence[tuple[str, int]]) -> None:
        eviction_keys = part.eviction_keys
        for start in range(0, len(touched), BATCH):
            batch = touched[start : start + BATCH]
            keys = [*eviction_keys, *(entry for entry, _ in batch)]
            arguments = [EVICTION_KEYS_MS, *(uses for _, uses in batch)]
            redis = self._clients.of(eviction_keys[0])
            await redis.run("touch", lambda client, k=keys, a=arguments: self._touch(k, a, client))  # type: ignore[misc]

    async def keep_flushing(self) -> None:
        """Flushes forever. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.turn()
            await self.flush()

    async def turn(self) -> None:
        """Tells the history which minute it is. Raises nothing."""
        if self._history is None:
            return
        if self._ahead_ms is None:
            with suppress(StoreUnavailable):
                self._ahead_ms = await self._redis.run("read_counters", now_ms) - time.monotonic() * 1000
        self._history.turn(self._minute, up=self.are_shared)


def _numbered(key: int, counts: Mapping[str, int]) -> list[str | int]:
    return [part for name, count in counts.items() for part in (key, name, count)]


SYNC_SECONDS: Final = 0.25
BUCKET_SECONDS: Final = 10
BUCKETS: Final = 6
RETRY_LIFETIME_MS: Final = 120_000


class _Budget(Protocol):
    """A worker's retry budget."""

    def take_unsent(self) -> tuple[int, int]: ...

    def fleet_is(self, calls: int, retries: int) -> None: ...

    def fleet_is_unknown(self) -> None: ...


class FleetRetries:
    """The fleet's calls and retries of the last minute: the retry budget is a share of them.

    Counts that cannot be sent are dropped: they matter only for a minute.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, budget: _Budget) -> None:
        self._key = keys.retries
        self._redis = redis.of(self._key)
        self._budget = budget
        self._add = script(redis.client, "stores/fleet", "add_retries")

    async def sync(self) -> None:
        """Sends this worker's counts and reads the fleet's. Does nothing if there is nothing to send."""
        calls, retries = self._budget.take_unsent()
        if not calls and not retries:
            return
        arguments = [calls, retries, BUCKET_SECONDS, BUCKETS, RETRY_LIFETIME_MS]
        try:
            found = await self._redis.run("retries", lambda client: self._add([self._key], arguments, client))
        except StoreUnavailable:
            self._budget.fleet_is_unknown()
            return
        self._budget.fleet_is(int(found[0]), int(found[1]))

    async def keep_in_step(self) -> None:
        """Syncs forever. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()


class RedisLeaderLease:
    """Work that one worker at a time does for the fleet. While Redis is down, each worker does it for itself.

    The value of `key` is the worker's id, so that operators can see who has the lease.
    """

    def __init__(self, redis: HealthGatedClients, key: str, worker: str) -> None:
        self._redis = redis.of(key)
        self._key = key
        self._worker = worker
        self._acquire = script(redis.client, "stores/fleet", "acquire_lease")
        self._release = script(redis.client, "stores/fleet", "release_lease")

    async def acquire(self, seconds: float) -> bool:
        """Takes or renews the lease for `seconds`. Returns whether this worker has it; True while Redis is down."""
        arguments: list[str | int] = [self._worker, round(seconds * 1000)]
        try:
            held = await self._redis.run("duty", lambda client: self._acquire([self._key], arguments, client))
        except StoreUnavailable:
            return True
        return bool(held)

    async def release(self) -> None:
        """Releases the lease, so that another worker can take it at once. While Redis is down, it expires by itself."""
        with suppress(StoreUnavailable):
            await self._redis.run("duty", lambda client: self._release([self._key], [self._worker], client))
