"""Stores what the fleet knows about its quality: the state, and the models of scopes.

A backup does not contain them: they are learned again from the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from api.ports.quality import StoredQuality
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms, script

LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""How long the state and the models live after they were last written."""
TIERS: Final = ("exact", "semantic", "stale")


class RedisQuality:
    """The store of one worker. Every method raises `StoreUnavailable`. On a cluster all keys but one share a shard."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._redis = redis.of(keys.quality)
        self._counters = redis.of(keys.cache_stats)
        self._keys = keys
        self._worker = worker
        self._read = script(redis.client, "stores/quality", "read")
        self._publish = script(redis.client, "stores/quality", "publish")

    async def read(self, known: int) -> StoredQuality:
        """Returns the stored epoch; its text, too, if it is not the one that the reader knows."""
        reply: Any = await self._redis.run("quality", partial(self._read, [self._keys.quality], [known]))
        return StoredQuality(int(reply[0]), reply[1] if len(reply) > 1 else None)

    async def publish(self, after: int, text: bytes, scopes: Mapping[str, bytes]) -> int | None:
        """Replaces the epoch `after`, and writes the models of scopes, in one step. Returns the new epoch.

        Returns None if another epoch is stored, or if this worker has lost the lease.
        """
        keys = [self._keys.quality, self._keys.quality_lease, *map(self._keys.quality_of, scopes)]
        arguments: list[Any] = [self._worker, after, LIFETIME_MS, text, *scopes.values()]
        reply: Any = await self._redis.run("quality_publish", partial(self._publish, keys, arguments))
        return int(reply) or None

    async def of_scopes(self, scopes: Sequence[str]) -> Sequence[bytes | None]:
        """Returns the models of scopes, in order."""

        async def ask(client: Any) -> list[bytes | None]:
            async with client.pipeline(transaction=False) as pipe:
                for scope in scopes:
                    pipe.get(self._keys.quality_of(scope))
                found: list[bytes | None] = await pipe.execute()
                return found

        return await self._redis.run("quality", ask)

    async def now_ms(self) -> int:
        """Returns Redis's clock."""
        return await self._redis.run("quality", now_ms)

    async def served(self) -> Mapping[str, int]:
        """Returns how many answers each tier has ever served."""
        fields = [f"{tier}_hits" for tier in TIERS]
        found: Any = await self._counters.run("quality", lambda client: client.hmget(self._keys.cache_stats, fields))
        return {tier: int(count or 0) for tier, count in zip(TIERS, found, strict=True)}
