"""The health-gated client: short commands only, with a deadline, and none while Redis is down.

A lost Redis costs the first caller at most its timeout. From then on every call fails at once, until a background check
sees Redis answer again and accept writes. A read-only replica counts as lost.
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

from api.cancellation import is_own_cancellation
from api.errors import StoreUnavailable
from api.redis_store.connections import BatchingRedis
from api.redis_store.encryption import NO_CIPHER, TextCipher
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
    """The key is on another shard of the Redis Cluster now. `HealthGatedSlot` retries there."""


class HealthGatedClients(Protocol):
    """Clients for all keys: a single one, or on a cluster one for each shard."""

    @property
    def client(self) -> Redis:
        """Registers scripts. Commands go through `HealthGated.run`."""

    @property
    def texts(self) -> TextCipher:
        """Encrypts the texts that are stored there."""

    def of(self, key: str) -> HealthGated:
        """Returns the client for a key and all keys of its slot."""


class HealthGated(Protocol):
    """The client for the server or shard that holds certain keys."""

    @property
    def client(self) -> Redis:
        """Registers scripts, and runs commands in actions of `on_recovery`. All other commands go through `run`."""

    @property
    def is_up(self) -> bool:
        """True if `run` accepts commands."""

    def of(self, key: str) -> HealthGated:
        """Returns the client for a key and all keys of its slot."""

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time Redis is found up, before any command is accepted. If it fails, none are."""

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time Redis is up again and accepts commands."""

    async def run(self, operation: str, command: Callable[[BatchingRedis], Awaitable[T]]) -> T:
        """Runs `command`. Raises `StoreUnavailable` for every Redis error.

        `operation` is the label of the command in metrics.
        """


class RedisHealthEvents:
    """The client's events. A subclass counts and logs them."""

    def failed(self, operation: str, error: BaseException) -> None:
        """An operation failed."""

    def lost(self, operation: str, error: BaseException) -> None:
        """This operation found that Redis is down, whether that was known or not."""

    def found(self) -> None:
        """Redis is up, for the first time or again."""


class HealthGatedRedis:
    """Runs commands while Redis is up; raises `StoreUnavailable` while it is down.

    `probe` is a key that never exists: deleting it shows whether Redis accepts writes. `ask` replaces this check and
    raises an error if Redis is unusable. `lost` is set as soon as a command finds Redis down.
    """

    def __init__(
        self,
        client: BatchingRedis,
        max_concurrency: int,
        events: RedisHealthEvents | None = None,
        *,
        probe: str = Keys().probe,
        ask: Callable[[BatchingRedis], Awaitable[None]] | None = None,
        lost: asyncio.Event | None = None,
    ) -> None:
        self.client = client
        self.texts = NO_CIPHER
        """Encrypts the texts that are stored there."""
        self.is_up = False
        self.is_read_only = False
        """True if it counts as down because it is a read-only replica."""
        self._epoch = 0
        """Number of recoveries. An error of a command from before the last one says nothing about Redis now."""
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
        """Same as `is_up`: there is one server."""
        return self.is_up

    @property
    def shards(self) -> tuple[int, int]:
        """Number of servers that are up, and their total."""
        return int(self.is_up), 1

    @property
    def servers(self) -> Sequence[HealthGatedRedis]:
        """This server."""
        return (self,)

    def of(self, key: str) -> HealthGatedRedis:
        """Returns this client: all keys are on one server."""
        return self

    def on_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Same as `on_recovery`: there is one server."""
        self.on_recovery(action)

    def after_each_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Same as `after_recovery`: there is one server."""
        self.after_recovery(action)

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time Redis is found up, before any command is accepted."""
        self._on_recovery.append(action)

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` each time Redis is up again and accepts commands."""
        self._after_recovery.append(action)

    async def run(self, operation: str, command: Callable[[BatchingRedis], Awaitable[T]]) -> T:
        """Runs `command`. Raises `StoreUnavailable` for every Redis error, and at once while Redis is down."""
        if not self.is_up:
            raise StoreUnavailable("Redis is down")
        async with self._slots:
            if not self.is_up:
                raise StoreUnavailable("Redis is down")
            return await self._run(operation, command)

    async def _run(self, operation: str, command: Callable[[BatchingRedis], Awaitable[T]]) -> T:
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
        except asyncio.CancelledError as error:
            if is_own_cancellation():
                raise
            self._events.failed(operation, error)
            raise StoreUnavailable("a library cancelled the command") from error

    async def _close(self, operation: str, error: BaseException) -> None:
        self.is_up = False
        self.is_read_only = isinstance(error, ReadOnlyError)
        self._lost.set()
        self._events.lost(operation, error)
        # The other connections are dead too, idle or in use: each would fail one more command.
        pool = self.client.connection_pool
        await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        with suppress(RedisError, OSError):  # drop connections that do not close in time
            await pool.disconnect(inuse_connections=False)

    async def check(self) -> bool:
        """Asks Redis whether it is up. If it is up again, runs the recovery actions first. Never raises."""
        epoch = self._epoch
        try:
            await self._run("ping", self._ask)
            if not self.is_up:
                await self._recover()
        except SlotMoved:
            self._is_down(epoch)  # the cluster looks for the slot before it asks again
        except StoreUnavailable as error:
            self._is_down(epoch)
            if isinstance(error.__cause__, RedisError) and not _is_lost(error.__cause__):
                self._events.lost("recovery", error.__cause__)  # it answers, but refuses a recovery action
        except Exception as error:  # noqa: BLE001 - whatever makes a recovery fail, Redis counts as down
            self._is_down(epoch)
            self._events.failed("recovery", error)
            self._events.lost("recovery", error)
        return self.is_up

    def _is_down(self, epoch: int) -> None:
        """Marks Redis as down, unless it has recovered since `epoch`."""
        if epoch == self._epoch:
            self.is_up = False

    async def _probed(self, client: Redis) -> None:
        """A write that changes nothing.

        Raises an error of `LOST` if Redis is down or read-only. Any other refusal means that Redis can at least be
        read.
        """
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
        """Rejects all commands until the recovery actions succeed again."""
        self.is_up = False
        self._lost.set()

    async def watch(self) -> None:
        """Checks Redis forever, with jitter, and right after an error.

        A single slow reply does not mean that Redis is lost. Runs as a task of the worker.
        """
        while True:
            await self.check()
            was_up = self.is_up
            self._lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                    await (self._lost.wait() if was_up else asyncio.Future[None]())


def _is_lost(error: BaseException) -> bool:
    """Returns whether the error means that the server is down. A shard without a majority refuses all but pings."""
    if isinstance(error, MaxConnectionsError):  # the limit of this worker, not of Redis
        return False
    return isinstance(error, LOST) or (isinstance(error, ClusterDownError) and "cluster is down" in str(error).lower())
