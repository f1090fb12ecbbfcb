"""Leases: keys with a lifetime that one worker of the fleet has at a time."""

from __future__ import annotations

from contextlib import suppress

from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.scripts import script


class RedisLeaderLease:
    """Work that one worker at a time does for the fleet. While Redis is down, each worker does it for itself.

    The value of `key` is the worker's id, so that operators can see who has the lease.
    """

    def __init__(self, redis: HealthGatedClients, key: str, worker: str) -> None:
        self._redis = redis.of(key)
        self._key = key
        self._worker = worker
        self._acquire = script(redis.client, "lease", "acquire")
        self._release = script(redis.client, "lease", "release")

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
