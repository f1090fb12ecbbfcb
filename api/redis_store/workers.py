"""The live workers of every replica: each renews a hash of its own; one that dies is gone when its lease ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys

HEARTBEAT_SECONDS: Final = 1.0
LEASE_MS: Final = 5_000


class WorkerRegistry:
    """`facts` gives what this worker says of itself at each heartbeat: flat fields, readable values."""

    def __init__(self, gate: Gates, keys: Keys, worker: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        self._gate = gate.of(keys.workers)
        self._keys = keys
        self._worker = worker
        self._facts = facts
        self.known_live = 1
        """Live workers as of the last heartbeat."""

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
        now_ms = await _now_ms(client)
        facts: dict[Any, Any] = {"id": self._worker, **self._facts()}
        async with client.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.worker(self._worker), mapping=facts)
            pipe.pexpire(self._keys.worker(self._worker), LEASE_MS)
            pipe.zadd(self._keys.workers, {self._worker: now_ms + LEASE_MS})
            pipe.zremrangebyscore(self._keys.workers, "-inf", now_ms)
            pipe.pexpire(self._keys.workers, LEASE_MS * 2)
            pipe.zcard(self._keys.workers)
            self.known_live = max(1, (await pipe.execute())[-1])

    async def _list(self, client: Redis) -> list[dict[str, str]]:
        ids: Any = await client.zrangebyscore(self._keys.workers, await _now_ms(client), "+inf")
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


async def _now_ms(client: Redis) -> int:
    seconds, micros = await client.time()
    return int(seconds) * 1000 + int(micros) // 1000
