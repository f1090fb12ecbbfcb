"""The way to one slot of a Redis Cluster, on whichever shard it is now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from redis.asyncio import Redis
from redis.crc import key_slot

from api.errors import StoreUnavailable
from api.redis_store.cluster_map import SlotMap
from api.redis_store.gate import RedisGate, SlotMoved

T = TypeVar("T")
REDIRECTED: Final = 3
"""Shards that one command may be sent to: the one that was known, and those that it is sent on to."""


class _Cluster(Protocol):
    """The shards, each behind a gate of its own."""

    @property
    def slots(self) -> SlotMap: ...

    @property
    def client(self) -> Redis: ...

    def shard_of(self, slot: int) -> RedisGate | None: ...

    async def look(self, seen: SlotMap, first: RedisGate | None = None) -> None: ...

    def recovering(self, slot: int, action: Callable[[], Awaitable[None]]) -> None: ...

    def recovered(self, slot: int, action: Callable[[], Awaitable[None]]) -> None: ...


class SlotGate:
    """See `Gate`. It holds nothing but the number of the slot."""

    def __init__(self, cluster: _Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot

    @property
    def client(self) -> Redis:
        """Of the shard that the slot is on now; before that is known, one that serves to make scripts."""
        shard = self._cluster.shard_of(self._slot)
        return self._cluster.client if shard is None else shard.client

    @property
    def is_up(self) -> bool:
        """Whether the shard is."""
        shard = self._cluster.shard_of(self._slot)
        return shard is not None and shard.is_up

    def of(self, key: str) -> SlotGate:
        """See `Gate`."""
        return SlotGate(self._cluster, key_slot(key.encode()))

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """See `Gate`."""
        self._cluster.recovering(self._slot, action)

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """See `Gate`."""
        self._cluster.recovered(self._slot, action)

    async def run(self, operation: str, command: Callable[[Redis], Awaitable[T]]) -> T:
        """See `Gate`. Sent on where the slot has moved: a shard that has it not does nothing of the command.

        While a slot is on its way (ASK, TRYAGAIN), it can not be used: a script finds its keys neither here nor there.
        """
        for _ in range(REDIRECTED):
            seen = self._cluster.slots
            shard = self._cluster.shard_of(self._slot)
            if shard is None:
                raise StoreUnavailable("no shard of the cluster is known to have it")
            try:
                return await shard.run(operation, command)
            except SlotMoved:
                await self._cluster.look(seen, shard)
        raise StoreUnavailable("it moves from shard to shard")
