"""What the fleet knows of its backends: written by the one worker that probes, read by all.

The live workers of every replica: each renews a hash of its own; one that dies is gone when its lease ends.

Counters of the fleet: added to here, sent to Redis together a moment later.

What is sent together is a batch with a number. Where the reply is lost, the same batch is sent again, and Redis adds it
once. What a killed worker loses is what it counted since the last flush, at most `FLUSH_SECONDS`.

The fleet's calls and retries of the last minute: what the retry budget is a share of.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import now_ms, script
from api.values import BackendHealth

BACKEND_LIFETIME_MS: Final = 60_000
DIGESTS_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000


class BackendHealthStore:
    """The fleet's shared knowledge of its backends. Key: `rag:backend:<name>`. `urls`: by backend name."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, urls: Mapping[str, str], worker: str) -> None:
        self._redis = redis.of(keys.backend(""))
        self._keys = keys
        self._urls = {name: _without_password(url) for name, url in urls.items()}
        self._worker = worker

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """Shares what the probes found, by backend name."""

        async def write(client: Redis) -> None:
            checked_ms = await now_ms(client)
            async with client.pipeline(transaction=True) as pipe:
                for name, health in found.items():
                    pipe.hset(self._keys.backend(name), mapping=self._fields(name, health, checked_ms))
                    pipe.pexpire(self._keys.backend(name), BACKEND_LIFETIME_MS)
                    if health.reachable:
                        self._write_digests(pipe, name, health.digests)
                await pipe.execute()

        await self._redis.run("backends", write)

    def _write_digests(self, pipe: Pipeline, name: str, digests: Mapping[str, str]) -> None:
        """Apart, and for long: a worker that starts while the backend is down finds the answers of its models."""
        key = self._keys.digests(name)
        pipe.delete(key)
        if digests:
            fields: dict[Any, Any] = dict(digests)
            pipe.hset(key, mapping=fields)
            pipe.pexpire(key, DIGESTS_LIFETIME_MS)

    async def read(self) -> Mapping[str, BackendHealth]:
        """What was last published and has not expired, without digests.

        An entry with another URL is another backend's.
        """

        async def ask(client: Redis) -> list[dict[bytes, bytes]]:
            async with client.pipeline(transaction=False) as pipe:
                for name in self._urls:
                    pipe.hgetall(self._keys.backend(name))
                replies: list[dict[bytes, bytes]] = await pipe.execute()
                return replies

        replies = await self._redis.run("backends", ask)
        read = {name: _texts(fields) for name, fields in zip(self._urls, replies, strict=True)}
        return {name: _health(fields) for name, fields in read.items() if fields.get("url") == self._urls[name]}

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """Shares the digests of a backend's models. `publish` does so too, for backends that answer."""

        async def write(client: Redis) -> None:
            async with client.pipeline(transaction=True) as pipe:
                self._write_digests(pipe, name, digests)
                await pipe.execute()

        await self._redis.run("backends", write)

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]:
        """The digests of a backend's models, or those of its last answer; empty if unknown.

        `early`: Redis has just recovered, and commands of others are not let through yet.

        With `early`, Redis's own errors are raised.
        """

        async def ask(client: Redis) -> dict[Any, Any]:
            fields: dict[Any, Any] = await client.hgetall(self._keys.digests(name))
            return fields

        return _texts(await (ask(self._redis.client) if early else self._redis.run("backends", ask)))

    def _fields(self, name: str, health: BackendHealth, checked_ms: int) -> dict[Any, Any]:
        return {
            "url": self._urls[name],
            "reachable": int(health.reachable),
            "models": " ".join(sorted(health.models)),
            "resident": " ".join(sorted(health.resident)),
            "checked_ms": checked_ms,
            "by": self._worker,
        }


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _health(fields: Mapping[str, str]) -> BackendHealth:
    return BackendHealth(
        reachable=fields.get("reachable") == "1",
        models=frozenset(fields.get("models", "").split()),
        resident=frozenset(fields.get("resident", "").split()),
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


HEARTBEAT_SECONDS: Final = 1.0
LEASE_MS: Final = 5_000
FULL_PACE_WORKERS: Final = 4
"""Workers up to which each looks for work at its full pace; of more, all together look as often as these."""
SLOWEST: Final = 8.0
"""By how much longer a worker pauses at most: a smaller fleet must not wait for its pace to be found."""


class WorkerRegistry:
    """`facts` gives what this worker says of itself at each heartbeat: flat fields, readable values."""

    def __init__(
        self, redis: HealthGatedClients, keys: Keys, worker: str, facts: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._redis = redis.of(keys.workers)
        self._keys = keys
        self._worker = worker
        self._facts = facts
        self._renewing = script(redis.client, "stores/fleet", "renew_worker")
        self.known_live = 1
        """Live workers as of the last heartbeat."""

    @property
    def pace(self) -> float:
        """By how much longer a worker pauses between two looks for work that any other would do as well."""
        return min(max(1.0, self.known_live / FULL_PACE_WORKERS), SLOWEST)

    async def heartbeat(self) -> None:
        """Says that this worker lives. Raises `StoreUnavailable`."""
        await self._redis.run("heartbeat", self._renew)

    async def live(self) -> list[dict[str, str]]:
        """What every live worker last said, by id; this one's words are of this moment."""
        await self.heartbeat()
        found = await self._redis.run("list_workers", self._list)
        return sorted(found, key=lambda worker: worker["id"])

    async def leave(self) -> None:
        """Says goodbye; a worker that cannot is forgotten when its lease ends."""
        try:
            await self._redis.run("leave", self._remove)
        except StoreUnavailable:
            return

    async def keep_renewing(self) -> None:
        """Heartbeats for ever, jittered. A task of the worker's."""
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
"""How long Redis remembers the last batch of a worker: what could be lost for longer may be counted twice."""
EVICTION_KEYS_MS: Final = 60_000
"""How long what is kept of the entries lives at least; each new entry makes that its own lifetime."""
BATCH: Final = 500
"""Entries that one script is sent."""


class CacheCounters:
    """`rag:stats:cache`, and the uses of entries. The last known totals stand in while Redis is down."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._clients = redis
        self._redis = redis.of(keys.cache_stats)
        self._keys = keys
        self._pending: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self._batch: tuple[int, Counter[str]] | None = None
        self._batches = 0
        self._batch_key = keys.cache_stats_batch(worker)
        self._add = script(redis.client, "stores/fleet", "add_counters")
        self._touch = script(redis.client, "stores/cache/answers", "touch")
        self._known: dict[str, int] = {}
        self._flushing = asyncio.Lock()

    @property
    def are_shared(self) -> bool:
        """Whether they reach the fleet now."""
        return self._redis.is_up

    def add(self, name: str, count: int = 1) -> None:
        """Counts; no I/O."""
        if count:
            self._pending[name] += count

    def touch(self, entry: str) -> None:
        """Notes a use of an entry; no I/O."""
        self._touched[entry] += 1

    async def totals(self) -> Mapping[str, int]:
        """The fleet's counts, this worker's own up to this moment among them."""
        await self.flush()
        try:
            raw: Mapping[Any, Any] = await self._redis.run(
                "read_counters", lambda client: client.hgetall(self._keys.cache_stats)
            )
            # What is no whole number was counted by a later release, and is not one of these.
            self._known = {name.decode(): int(value) for name, value in raw.items() if value.isdigit()}
        except StoreUnavailable:
            return Counter(self._known) + self._pending + (self._batch[1] if self._batch else Counter())
        return self._known

    async def flush(self) -> None:
        """Sends what is pending; keeps it for the next time when Redis is down. Cancelled, it still sends."""
        if self._pending or self._batch or self._touched or self._flushing.locked():
            await asyncio.shield(asyncio.create_task(self._flush()))

    async def _flush(self) -> None:
        async with self._flushing:
            with suppress(StoreUnavailable):  # kept, and sent again
                while self._batch or self._pending:
                    await self._send_batch()
            await self._send_touched_all()

    async def _send_batch(self) -> None:
        """One that may have arrived before the next."""
        if self._batch is None:
            self._batches += 1
            self._batch = self._batches, self._pending
            self._pending = Counter()
        number, counts = self._batch
        arguments: list[str | int] = [number, BATCH_MS, COUNTER_LIFETIME_MS]
        for name, count in counts.items():
            arguments += (name, count)
        keys = [self._keys.cache_stats, self._batch_key]
        await self._redis.run("flush_counters", lambda client: self._add(keys, arguments, client))
        self._batch = None

    async def _send_touched_all(self) -> None:
        touched, self._touched = self._touched, Counter()
        for part in self._keys.partitions if touched else ():
            of_part = [(entry, uses) for entry, uses in touched.items() if part.holds(entry)]
            with suppress(StoreUnavailable):  # to lose some uses costs an entry a little of what it is worth, no more
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
        """Flushes for ever. A task of the worker's."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()


SYNC_SECONDS: Final = 0.25
BUCKET_SECONDS: Final = 10
BUCKETS: Final = 6
RETRY_LIFETIME_MS: Final = 120_000


class _Budget(Protocol):
    """A worker's budget."""

    def take_unsent(self) -> tuple[int, int]: ...

    def fleet_is(self, calls: int, retries: int) -> None: ...

    def fleet_is_unknown(self) -> None: ...


class FleetRetries:
    """`rag:stats:retries`. What could not be sent is let go: it counts for a minute only."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, budget: _Budget) -> None:
        self._key = keys.retries
        self._redis = redis.of(self._key)
        self._budget = budget
        self._add = script(redis.client, "stores/fleet", "add_retries")

    async def sync(self) -> None:
        """Sends this worker's counts and takes over the fleet's; nothing while there is nothing to send."""
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
        """Syncs for ever. A task of the worker's."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()
