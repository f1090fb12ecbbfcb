"""Maintains the vector indexes, with or without traffic.

Each worker recreates lost indexes, notices when one is complete, and reports which ones it uses. One worker of the
fleet drops indexes that no worker has used for `IDLE_SECONDS` and that are not needed: see `is_left_over`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from itertools import cycle
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.coordination import LeaderLease
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys
from api.redis_store.scripts import on_all, script
from api.redis_store.stores.cache.semantic_index import SemanticIndex, SemanticIndexes

MAINTAIN_SECONDS: Final = 1.0
CONCURRENCY: Final = 4
"""Partitions to check each time. More partitions do not mean more requests to Redis."""
BUILDING_SECONDS: Final = 0.25
"""Seconds between two checks of an index that is being built."""
RENEW_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 600.0
LIFETIME_MS: Final = 3600 * 1000
"""Must be longer than `IDLE_SECONDS`."""


class IndexKeeper:
    """This worker's part of the maintenance. `lease`: the lease to drop indexes, in all partitions.

    `pace`: the factor by which it checks less often, since other workers check too.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        indexes: SemanticIndexes,
        lease: LeaderLease,
        idle_seconds: float = IDLE_SECONDS,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._redis = redis
        self._indexes = indexes
        self._lease = lease
        self._pace = pace
        self._idle_ms = round(idle_seconds * 1000)
        self._renew = script(redis.client, "stores/cache/index_keeper", "renew")
        self._idle = script(redis.client, "stores/cache/index_keeper", "idle")

    async def keep(self) -> None:
        """Maintains the indexes forever, with jitter: each time the next few, and those that are being built.

        Runs as a task of the worker.
        """
        due = time.monotonic()
        in_turn = cycle(self._indexes)
        while True:
            turn = {next(in_turn) for _ in range(min(CONCURRENCY, len(self._indexes)))}
            for index in turn | {index for index in self._indexes if index.is_building}:
                with suppress(StoreUnavailable):  # the client reports when Redis is back
                    await index.maintain()
            if time.monotonic() >= due:
                due = time.monotonic() + RENEW_SECONDS
                with suppress(StoreUnavailable):
                    await self.renew()
                with suppress(StoreUnavailable):
                    await self.clean()
            building = any(index.is_building for index in self._indexes)
            pause = BUILDING_SECONDS if building else MAINTAIN_SECONDS * self._pace()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def renew(self) -> None:
        """Reports which indexes this worker uses. Raises `StoreUnavailable`."""
        await on_all(self._renew_of(index) for index in self._indexes)

    async def _renew_of(self, index: SemanticIndex) -> None:
        index.forget_unused(self._idle_ms / 1000)
        names = index.in_use()
        if names:
            key = index.keys.index_uses
            arguments: list[str | int] = [LIFETIME_MS, *names]
            await self._redis.of(key).run("index_renew", lambda client: self._renew([key], arguments, client))

    async def clean(self) -> list[str]:
        """Drops unneeded indexes if this worker has the lease. Raises `StoreUnavailable`."""
        supported = [index.keys for index in self._indexes if index.supported]
        if not (supported and await self._lease.acquire(2 * RENEW_SECONDS + 5)):
            return []
        dropped = await on_all(
            self._redis.of(keys.index_uses).run("index_clean", partial(self._clean, keys)) for keys in supported
        )
        return [name for of_one in dropped for name in of_one]

    async def _clean(self, keys: CacheKeys, client: Redis) -> list[str]:
        listed: Any = await client.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
        ours = {name for raw in listed if (name := raw.decode("utf-8", "replace")).startswith(keys.indexes)}
        arguments = [LIFETIME_MS, self._idle_ms, *ours]
        idle = {name.decode() for name in await self._idle([keys.index_uses], arguments, client)}
        dropped = []
        for name in sorted(idle):
            info: Any = await client.execute_command("FT.INFO", name)  # type: ignore[no-untyped-call]
            if is_left_over(keys, name, int(info[b"num_docs"]), ours - idle):
                await client.execute_command("FT.DROPINDEX", name)  # type: ignore[no-untyped-call]
                dropped.append(name)
        return dropped


def is_left_over(keys: CacheKeys, name: str, entries: int, used: Collection[str]) -> bool:
    """Returns whether an idle index can be dropped: it is empty, or another one over the same entries is in use."""
    return entries == 0 or _embedder(keys, name) in {_embedder(keys, other) for other in used}


def _embedder(keys: CacheKeys, name: str) -> str:
    return name.removeprefix(keys.indexes).partition("-")[0]
