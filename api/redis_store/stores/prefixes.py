"""The prompts that the backends have read last, as the fleet remembers them, and the backends' load.

Keys: `rag:prefix:<backend>` and `rag:prefix`. The least recently used prompt of a backend makes room for a new one, and
all are forgotten after an hour without any. One script compares a prompt with those of all backends, and counts their
calls. On a Redis Cluster, or with a separate Redis for bulkheads, other scripts count the calls at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from api.errors import StoreUnavailable
from api.ports.coordination import Known
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

LIFETIME_MS: Final = 3600 * 1000
RECENT_MS: Final = 60 * 1000
"""Time after its last use for which a prompt counts as in use: another one should not push it out."""


class RedisPrefixStore:
    """Implements `ports.PrefixStore`. `room`: the number of prompts whose state a backend keeps.

    `guards` are the clients of the Redis that has the bulkheads.
    """

    def __init__(
        self, redis: HealthGatedClients, guards: HealthGatedClients, keys: Keys, backends: Sequence[str], room: int
    ) -> None:
        self._redis = redis.of(keys.prefix_key)
        self._keys = keys
        self._backends = backends
        self._room = room
        self._hashes = [keys.prefixes(name) for name in backends]
        self._queues = {name: keys.bulkhead(name)[:2] for name in backends}
        self._is_one_redis = redis is guards and not keys.cluster
        self._guards = {name: guards.of(queues[0]) for name, queues in self._queues.items()}
        self._agree = script(self._redis.client, "stores/prefixes", "agree")
        self._look_up = script(self._redis.client, "stores/prefixes", "look_up")
        self._record = script(self._redis.client, "stores/prefixes", "record")
        self._forget = script(self._redis.client, "stores/prefixes", "forget")
        self._count = script(self._redis.client, "stores/prefixes", "count")
        self._calls = {name: script(guard.client, "stores/prefixes", "calls") for name, guard in self._guards.items()}

    async def agree(self, key: str) -> str:
        """Returns the fleet's key of digests: `key`, unless there is one. Raises `StoreUnavailable`."""
        keys = [self._keys.prefix_key]
        arguments: list[str | int] = [key, LIFETIME_MS]
        known: bytes = await self._redis.run("prefix", lambda client: self._agree(keys, arguments, client))
        return known.decode()

    async def look_up(self, chain: str) -> Mapping[str, Known]:
        """Returns what is known about each backend. Raises `StoreUnavailable`."""
        if self._is_one_redis:
            queues = [key for name in self._backends for key in self._queues[name]]
            return self._known(await self._compare(chain, queues))
        counting = asyncio.gather(*(self._calls_of(name) for name in self._backends))
        found, calls = await asyncio.gather(self._compare(chain, []), counting)
        return self._known([[*one[:3], count] for one, count in zip(found, calls, strict=True)])

    async def _compare(self, chain: str, queues: list[str]) -> list[list[int]]:
        keys = [*self._hashes, *queues]
        arguments: list[str | int] = [chain, self._room, RECENT_MS, len(self._backends)]
        found: list[list[int]] = await self._redis.run("prefix", lambda client: self._look_up(keys, arguments, client))
        return found

    async def _calls_of(self, name: str) -> int:
        """Returns how many calls to a backend run and wait; 0 if that is unknown."""
        called, keys = self._calls[name], self._queues[name]
        with suppress(StoreUnavailable):
            return int(await self._guards[name].run("prefix", lambda client: called(keys, [], client)))
        return 0

    def _known(self, found: Sequence[Sequence[int]]) -> dict[str, Known]:
        return {
            name: Known(int(blocks), bool(continues), int(in_use) / self._room, max(0, int(calls)))
            for name, (blocks, continues, in_use, calls) in zip(self._backends, found, strict=True)
        }

    async def record(self, backend: str, model: str, chain: str, prompt_blocks: int, *, key: str, alone: bool) -> str:
        """Notes a prompt, if `key` is the fleet's. Returns the fleet's key. Raises `StoreUnavailable`."""
        keys = [self._keys.prefix_key, self._keys.prefixes(backend)]
        arguments: list[Any] = [key, model, chain, prompt_blocks, self._room, LIFETIME_MS, int(alone)]
        known: bytes = await self._redis.run("prefix", lambda client: self._record(keys, arguments, client))
        return known.decode()

    async def forget(self, backend: str, models: Collection[str] = ()) -> None:
        """Forgets a backend's prompts of some models, by `model_key`, or of all. Does nothing while Redis is down."""
        keys, gone = [self._keys.prefixes(backend)], list(models)
        with suppress(StoreUnavailable):
            await self._redis.run("prefix", lambda client: self._forget(keys, gone, client))

    async def counts(self) -> Mapping[str, int]:
        """Returns how many prompts are remembered of each backend; empty while Redis is down."""
        with suppress(StoreUnavailable):
            found: list[int] = await self._redis.run("prefix", lambda client: self._count(self._hashes, [], client))
            return dict(zip(self._backends, found, strict=True))
        return {}
