"""The one way to Redis for short commands: bounded, with a deadline, and closed at once when Redis is lost.

A lost Redis costs the first caller at most its timeout; from then on every caller is told at once, until a watcher
has seen it answer again, and take writes: a replica that nobody may write to is as good as lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.errors import StoreUnavailable
from api.redis_store.keys import Keys

T = TypeVar("T")
WATCH_SECONDS: Final = 0.5
LOST = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    MasterDownError,
    ReadOnlyError,
    OSError,
    TimeoutError,
)


class SlotMoved(StoreUnavailable):
    """What was asked for is on another shard of a Redis Cluster. `of_shards` asks there."""


class HealthGatedClients(Protocol):
    """The ways to all keys: one where there is one Redis, one for each shard of a cluster."""

    @property
    def client(self) -> Redis:
        """Makes scripts; commands are for `HealthGated.run`."""

    def of(self, key: str) -> HealthGated:
        """The way to a key, and to all keys of its slot."""


class HealthGated(Protocol):
    """Access to the Redis server, or the shard, that holds certain keys."""

    @property
    def client(self) -> Redis:
        """Makes scripts, and serves actions of `on_recovery`; for all else there is `run`."""

    @property
    def is_up(self) -> bool:
        """Whether commands are let through."""

    def of(self, key: str) -> HealthGated:
        """Access to a key and to all keys of its slot."""

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis recovers, before callers are let through. If it fails, none are."""

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis has recovered and callers are let through."""

    async def run(self, operation: str, command: Callable[[Redis], Awaitable[T]]) -> T:
        """Awaits `command`. Raises `StoreUnavailable` for any fault of Redis; `operation` names it in metrics."""


class RedisHealthEvents:
    """What happens at the gate; a subclass counts and logs."""

    def failed(self, operation: str, error: BaseException) -> None:
        """An operation failed."""

    def lost(self, operation: str, error: BaseException) -> None:
        """This operation found that Redis is not up, whether or not that was known."""

    def found(self) -> None:
        """Redis is up (again)."""


class HealthGatedRedis:
    """Runs commands on a client while Redis is up, and says `StoreUnavailable` when it is not.

    `probe` is a key that never exists: whether it can be deleted tells whether Redis takes writes. `ask`, where it is
    given, is asked instead, and raises a fault of Redis; `lost` is set as soon as a command finds one.
    """

    def __init__(
        self,
        client: Redis,
        max_concurrency: int,
        events: RedisHealthEvents | None = None,
        *,
        probe: str = Keys().probe,
        ask: Callable[[Redis], Awaitable[None]] | None = None,
        lost: asyncio.Event | None = None,
    ) -> None:
        self.client = client
        self.is_up = False
        self.is_read_only = False
        """Lost, because it is a replica."""
        self._epoch = 0
        """Counts the recoveries: what failed of an older one says nothing about Redis as it is now."""
        self._probe = probe
        self._events = events or RedisHealthEvents()
        self._slots = asyncio.Semaphore(max_concurrency)
        self._ask = ask or self._probed
        self._lost = lost or asyncio.Event()
        self._recovering = asyncio.Lock()
        self._on_recovery: list[Callable[[], Awaitable[None]]] = []
        self._after_recovery: list[Callable[[], Awaitable[None]]] = []

    @property
    def any_up(self) -> bool:
        """The same as `is_up`: there is one server."""
        return self.is_up

    @property
    def shards(self) -> tuple[int, int]:
        """How many servers are up, and of how many."""
        return int(self.is_up), 1

    @property
    def servers(self) -> Sequence[HealthGatedRedis]:
        """This one alone."""
        return (self,)

    def of(self, key: str) -> HealthGatedRedis:
        """All keys are on the one server."""
        return self

    def on_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """The same as `on_recovery`: there is one server."""
        self.on_recovery(action)

    def after_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """The same as `after_recovery`."""
        self.after_recovery(action)

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis recovers, before callers are let through. If it fails, none are."""
        self._on_recovery.append(action)

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis has recovered and callers are let through."""
        self._after_recovery.append(action)

    async def run(self, operation: str, command: Callable[[Redis], Awaitable[T]]) -> T:
        """Awaits `command`. Raises `StoreUnavailable` for any fault of Redis; `operation` names it in metrics."""
        if not self.is_up:
            raise StoreUnavailable("Redis is down")
        async with self._slots:
            if not self.is_up:
                raise StoreUnavailable("Redis is down")
            return await self._run(operation, command)

    async def _run(self, operation: str, command: Callable[[Redis], Awaitable[T]]) -> T:
        epoch = self._epoch
        try:
            return await command(self.client)
        except MovedError as error:
            raise SlotMoved(str(error)) from error
        except (*LOST, RedisError) as error:
            if _is_lost(error) and epoch == self._epoch:
                await self._close(operation, error)
            self._events.failed(operation, error)
            raise StoreUnavailable(str(error) or type(error).__name__) from error

    async def _close(self, operation: str, error: BaseException) -> None:
        self.is_up = False
        self.is_read_only = isinstance(error, ReadOnlyError)
        self._lost.set()
        self._events.lost(operation, error)
        # What is kept idle is as dead as this one: each would fail the next command in turn. So is what is in use.
        pool = self.client.connection_pool
        await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        with suppress(RedisError, OSError):  # a connection that does not even close in time is dropped as it is
            await pool.disconnect(inuse_connections=False)

    async def check(self) -> bool:
        """Asks Redis itself, whatever is known. One found up again is made ready before it is used. Raises nothing."""
        epoch = self._epoch
        try:
            await self._run("ping", self._ask)
            if not self.is_up:
                await self._recover()
        except SlotMoved:
            self._is_down(epoch)  # it is looked for before it is asked again
        except StoreUnavailable as error:
            self._is_down(epoch)
            if isinstance(error.__cause__, RedisError) and not _is_lost(error.__cause__):
                self._events.lost("recovery", error.__cause__)  # it answers, but refuses what is needed
        except Exception as error:  # noqa: BLE001 - whatever keeps Redis from being made ready, it is down
            self._is_down(epoch)
            self._events.failed("recovery", error)
            self._events.lost("recovery", error)
        return self.is_up

    def _is_down(self, epoch: int) -> None:
        """Unless somebody has found it up since."""
        if epoch == self._epoch:
            self.is_up = False

    async def _probed(self, client: Redis) -> None:
        """A write that changes nothing. Raises what `LOST` names; refused for any other reason, Redis can be read."""
        try:
            await client.unlink(self._probe)
        except (MasterDownError, ReadOnlyError):
            raise
        except ResponseError:
            return

    async def _recover(self) -> None:
        async with self._recovering:
            if self.is_up:
                return
            for action in self._on_recovery:
                await self._run("recovery", lambda _, action=action: action())  # type: ignore[misc]
            self.is_up = True
            self._epoch += 1
            self.is_read_only = False
            self._events.found()
        ends = await asyncio.gather(*(action() for action in self._after_recovery), return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):
                self._events.failed("after_recovery", error)

    def shut(self) -> None:
        """Lets nobody through until the actions of a recovery pass again."""
        self.is_up = False
        self._lost.set()

    async def watch(self) -> None:
        """Checks for ever, jittered, and at once after a fault: one slow reply is not a lost Redis. A worker's task."""
        while True:
            await self.check()
            was_up = self.is_up
            self._lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                    await (self._lost.wait() if was_up else asyncio.Future[None]())


def _is_lost(error: BaseException) -> bool:
    """Whether the server is. A shard that is cut off from most of a cluster refuses all, but answers a ping."""
    if isinstance(error, MaxConnectionsError):  # this worker's own limit
        return False
    return isinstance(error, LOST) or (isinstance(error, ClusterDownError) and "cluster is down" in str(error).lower())
