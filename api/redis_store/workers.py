"""The live workers of every replica: each renews a hash of its own; one that dies is gone when its lease ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.clock import now_ms
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

HEARTBEAT_SECONDS: Final = 1.0
LEASE_MS: Final = 5_000
LOOKS: Final = 4
"""Workers up to which each looks for work at its full pace; of more, all together look as often as these."""
SLOWEST: Final = 8.0
"""By how much longer a worker pauses at most: a smaller fleet must not wait for its pace to be found."""


class WorkerRegistry:
    """`facts` gives what this worker says of itself at each heartbeat: flat fields, readable values."""

    def __init__(self, gate: Gates, keys: Keys, worker: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        self._gate = gate.of(keys.workers)
        self._keys = keys
        self._worker = worker
        self._facts = facts
        self._renewing = script(gate.client, "worker_renew")
        self.known_live = 1
        """Live workers as of the last heartbeat."""

    @property
    def pace(self) -> float:
        """By how much longer a worker pauses between two looks for work that any other would do as well."""
        return min(max(1.0, self.known_live / LOOKS), SLOWEST)

    async def heartbeat(self) -> None:
        """Says that this worker lives. Raises `StoreUnavailable`."""
        await self._gate.run("heartbeat", self._renew)

    async def live(self) -> list[dict[str, str]]:
        """What every live worker last said, by id; this one's words are of this moment."""
        await self.heartbeat()
        found = await self._gate.run("list_workers", self._list)
        return sorted(found, key=lambda worker: worker["id"])

    async def leave(self) -> None:
        """Says goodbye; a worker that cannot is forgotten when its lease ends."""
        try:
            await self._gate.run("leave", self._remove)
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
