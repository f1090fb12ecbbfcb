"""A client for a Redis Cluster: one health-gated client per shard.

An outage of one shard affects only its keys. redis-py's RedisCluster is different: when a command on one node fails, it
asks for the layout of the whole cluster while all commands wait, and it closes the connections to all nodes when one of
them answers CLUSTERDOWN.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, RedisError

from api.errors import StoreUnavailable
from api.redis_store.connections import BatchingRedis
from api.redis_store.encryption import NO_CIPHER
from api.redis_store.health_gated import WATCH_SECONDS, HealthGatedRedis, RedisHealthEvents, SlotMoved

SLOTS: Final = 16384


class Node(NamedTuple):
    """The address of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SlotMap:
    """The primary of each slot, as reported by CLUSTER SLOTS."""

    def __init__(self, ranges: Iterable[tuple[int, int, Node]] = ()) -> None:
        """`ranges`: first slot, last slot, the node that has them."""
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _, _ in self._ranges]
        self.nodes = frozenset(node for _, _, node in self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def is_complete(self) -> bool:
        """True if every slot has a shard."""
        return sum(last - first + 1 for first, last, _ in self._ranges) == SLOTS

    def owner(self, slot: int) -> Node | None:
        """Returns the node that has the slot, or None."""
        at = bisect_right(self._firsts, slot) - 1
        if at < 0:
            return None
        _, last, node = self._ranges[at]
        return node if slot <= last else None

    @classmethod
    def read(cls, reply: Any, asked: Node) -> SlotMap:
        """Parses a reply of CLUSTER SLOTS. A node that omits its own host is the node that was asked."""
        ranges = []
        for first, last, primary, *_ in reply:
            host = primary[0].decode() if isinstance(primary[0], bytes) else primary[0]
            ranges.append((int(first), int(last), Node(host or asked.host, int(primary[1]))))
        return cls(ranges)


T = TypeVar("T")
REDIRECTED: Final = 3
"""Most shards that one command is sent to: the known one, then those it is redirected to."""


class _Cluster(Protocol):
    """The part of a cluster that a slot uses."""

    @property
    def slots(self) -> SlotMap: ...

    @property
    def client(self) -> Redis: ...

    def shard_of(self, slot: int) -> HealthGatedRedis | None: ...

    async def look(self, seen: SlotMap, first: HealthGatedRedis | None = None) -> None: ...

    def recovering(self, slot: int, action: Callable[[], Awaitable[None]]) -> None: ...

    def recovered(self, slot: int, action: Callable[[], Awaitable[None]]) -> None: ...


class HealthGatedSlot:
    """The client for one slot, on whichever shard it is now. It stores only the number of the slot."""

    def __init__(self, cluster: _Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot

    @property
    def client(self) -> Redis:
        """The client of the shard that has the slot; before it is known, one that can register scripts."""
        shard = self._cluster.shard_of(self._slot)
        return self._cluster.client if shard is None else shard.client

    @property
    def is_up(self) -> bool:
        """True if the shard of the slot is up."""
        shard = self._cluster.shard_of(self._slot)
        return shard is not None and shard.is_up

    def of(self, key: str) -> HealthGatedSlot:
        """Returns the client for a key and all keys of its slot."""
        return HealthGatedSlot(self._cluster, key_slot(key.encode()))

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time the shard is found up, before any command is accepted."""
        self._cluster.recovering(self._slot, action)

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time the shard is up again and accepts commands."""
        self._cluster.recovered(self._slot, action)

    async def run(self, operation: str, command: Callable[[BatchingRedis], Awaitable[T]]) -> T:
        """Runs `command`; retries it on another shard if the slot has moved. A shard without the slot runs nothing.

        While a slot is being migrated (ASK, TRYAGAIN) it is unavailable: a script finds its keys on neither shard.
        Raises `StoreUnavailable` for every Redis error.
        """
        for _ in range(REDIRECTED):
            seen = self._cluster.slots
            shard = self._cluster.shard_of(self._slot)
            if shard is None:
                raise StoreUnavailable("No shard of the Redis Cluster has the slot.")
            try:
                return await shard.run(operation, command)
            except SlotMoved:
                await self._cluster.look(seen, shard)
        raise StoreUnavailable("The slot keeps moving between shards.")


Actions = dict[int, list[Callable[[], Awaitable[None]]]]


class HealthGatedCluster:
    """Knows the shards and their slots, and watches both.

    `opened` makes a client for a node, without I/O. `seeds` are asked for the layout while no known shard answers.
    `events` returns the events of a shard, by its name. `not_a_cluster` is called if a server is not part of a cluster.
    """

    def __init__(
        self,
        opened: Callable[[Node], BatchingRedis],
        seeds: Sequence[Node],
        max_concurrency: int,
        events: Callable[[str], RedisHealthEvents] = lambda shard: RedisHealthEvents(),
        not_a_cluster: Callable[[], None] = lambda: None,
    ) -> None:
        self.slots = SlotMap()
        self.texts = NO_CIPHER
        """Encrypts the texts that are stored there."""
        self.client = opened(seeds[0])
        """Registers scripts. It never sends a command."""
        self._opened = opened
        self._seeds = seeds
        self._max_concurrency = max_concurrency
        self._events = events
        self._not_a_cluster = not_a_cluster
        self._reported = False
        self._nodes_events = events("")
        self._fault: BaseException | None = None
        self._shards: dict[Node, HealthGatedRedis] = {}
        self._lost = asyncio.Event()
        self._looking = asyncio.Lock()
        self._on_recovery: Actions = defaultdict(list)
        self._after_recovery: Actions = defaultdict(list)
        self._on_each: list[Callable[[], Awaitable[None]]] = []
        self._after_each: list[Callable[[], Awaitable[None]]] = []

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """True if every shard is up and every slot has a shard."""
        up, known = self.shards
        return up == known > 0 and self.slots.is_complete

    @property
    def any_up(self) -> bool:
        """True if at least one shard is up."""
        return self.shards[0] > 0

    @property
    def shards(self) -> tuple[int, int]:
        """Number of shards that are up, and their total."""
        return sum(shard.is_up for shard in self._shards.values()), len(self._shards)

    @property
    def is_read_only(self) -> bool:
        """True if a shard counts as down because it is a read-only replica."""
        return any(shard.is_read_only for shard in self.servers)

    @property
    def servers(self) -> Sequence[HealthGatedRedis]:
        """The known shards."""
        return list(self._shards.values())

    def of(self, key: str) -> HealthGatedSlot:
        """Returns the client for a key and all keys of its slot."""
        return HealthGatedSlot(self, key_slot(key.encode()))

    def shard_of(self, slot: int) -> HealthGatedRedis | None:
        """Returns the client of the shard that has a slot, or None."""
        node = self.slots.owner(slot)
        return self._shards.get(node) if node is not None else None

    def recovering(self, slot: int, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time the shard that has the slot is found up, before it accepts commands."""
        self._on_recovery[slot].append(action)

    def recovered(self, slot: int, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time the shard that has the slot accepts commands again."""
        self._after_recovery[slot].append(action)

    def on_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` before any shard accepts commands. If it fails, the shard accepts none."""
        self._on_each.append(action)

    def after_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time any shard is up again and accepts commands."""
        self._after_each.append(action)

    def shut(self) -> None:
        """Rejects all commands until the recovery actions succeed again."""
        for shard in self.servers:
            shard.shut()

    # -- watching -----------------------------------------------------------------------------------------------------

    async def check(self) -> bool:
        """Asks all shards whether they are up. If one is down, asks for the layout first. Never raises."""
        if not self.is_up:
            await self.look(self.slots)
        await asyncio.gather(*(shard.check() for shard in self._shards.values()))
        return self.is_up

    async def watch(self) -> None:
        """Checks the cluster forever, with jitter, and right after an error. Runs as a task of the worker."""
        while True:
            await self.check()
            self._lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                    await self._lost.wait()

    async def look(self, seen: SlotMap, first: HealthGatedRedis | None = None) -> None:
        """Asks for the layout again, unless it is newer than `seen` already. Never raises.

        `first` is asked first: it knows about the change, other shards may not yet.
        """
        async with self._looking:
            if self.slots is not seen:
                return
            async with aclosing(self._asked(first)) as asked:
                async for slots in asked:
                    if slots:
                        await self._take(slots)
                        return
            if self._fault is not None and not self._shards:  # no shard is known that could report it
                self._nodes_events.failed("ping", self._fault)
                self._nodes_events.lost("ping", self._fault)

    async def _asked(self, first: HealthGatedRedis | None) -> AsyncGenerator[SlotMap, None]:
        """Yields the layout as each node reports it: shards that are up, those that are down, the seeds."""
        for node, shard in sorted(self._shards.items(), key=lambda one: (one[1] is not first, not one[1].is_up)):
            yield await self._layout(shard.client, node)
        for seed in self._seeds:
            async with self._opened(seed) as client:
                yield await self._layout(client, seed)

    async def _layout(self, client: Redis, node: Node) -> SlotMap:
        """Returns the layout that a node reports; an empty one if it does not answer."""
        try:
            reply: Any = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            if "cluster support disabled" in str(error).lower():
                self._report_once()
            else:
                self._fault = error
            return SlotMap()
        return SlotMap.read(reply, node)

    def _report_once(self) -> None:
        if not self._reported:
            self._reported = True
            self._not_a_cluster()

    async def _take(self, slots: SlotMap) -> None:
        gone = [self._shards.pop(node) for node in self._shards.keys() - slots.nodes]
        for node in slots.nodes - self._shards.keys():
            self._shards[node] = self._shard(node)
            self._lost.set()  # so that `watch` asks it at once
        self.slots = slots
        for shard in gone:
            await _close(shard.client)

    def _shard(self, node: Node) -> HealthGatedRedis:
        events = self._events(str(node))
        shard = HealthGatedRedis(self._opened(node), self._max_concurrency, events, ask=_state, lost=self._lost)
        shard.on_recovery(lambda: self._run(self._on_recovery, self._on_each, node))
        shard.after_recovery(lambda: self._run(self._after_recovery, self._after_each, node))
        return shard

    async def _run(self, actions: Actions, each: Sequence[Callable[[], Awaitable[None]]], node: Node) -> None:
        for action in each:
            await action()
        for slot, of_slot in list(actions.items()):
            if self.slots.owner(slot) == node:
                for action in of_slot:
                    await action()

    async def aclose(self) -> None:
        """Closes all connections."""
        for shard in self._shards.values():
            await _close(shard.client)
        await self.client.aclose()


async def _close(client: Redis) -> None:
    """Closes a client. Connections under TLS to a dead server do not close in time and are dropped."""
    with suppress(RedisError, OSError):
        await client.aclose()


async def _state(client: Redis) -> None:
    """Checks CLUSTER INFO: a shard without a majority, or one that has just started, answers but serves nothing."""
    info: Any = await client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    if info.get("cluster_state") != "ok":
        raise ClusterDownError("CLUSTERDOWN The cluster is down")
