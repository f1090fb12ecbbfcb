"""The one way to Redis for short commands: bounded, with a deadline, and closed at once when Redis is lost.

A lost Redis costs the first caller at most its timeout; from then on every caller is told at once, until a watcher
has seen it answer again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.errors import StoreUnavailable

T = TypeVar("T")
WATCH_SECONDS: Final = 0.5
LOST = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError, TimeoutError)


class GateEvents:
    """What happens at the gate; a subclass counts and logs."""

    def failed(self, operation: str, error: BaseException) -> None:
        """An operation failed."""

    def lost(self, operation: str, error: BaseException) -> None:
        """Redis was up, and this operation found that it is not."""

    def found(self) -> None:
        """Redis is up (again)."""


class RedisGate:
    """Runs commands on a client while Redis is up, and says `StoreUnavailable` when it is not."""

    def __init__(self, client: Redis, max_concurrency: int, events: GateEvents | None = None) -> None:
        self.client = client
        self.is_up = False
        self._events = events or GateEvents()
        self._slots = asyncio.Semaphore(max_concurrency)
        self._lost = asyncio.Event()
        self._recovering = asyncio.Lock()
        self._on_recovery: list[Callable[[], Awaitable[None]]] = []
        self._after_recovery: list[Callable[[], Awaitable[None]]] = []

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis is (again) found up, before callers are let through. If it fails, none are."""
        self._on_recovery.append(action)

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Runs `action` whenever Redis is up again and callers are let through."""
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
        try:
            return await command(self.client)
        except LOST as error:
            if self.is_up:
                self._events.lost(operation, error)
            self.is_up = False
            self._lost.set()
            self._events.failed(operation, error)
            # What is kept idle is as dead as this one: each would fail the next command in turn.
            await self.client.connection_pool.disconnect(inuse_connections=False)
            raise StoreUnavailable(str(error) or type(error).__name__) from error
        except RedisError as error:
            self._events.failed(operation, error)
            raise StoreUnavailable(str(error)) from error

    async def check(self) -> bool:
        """Asks Redis itself, whatever is known. One found up again is made ready before it is used. Raises nothing."""
        try:
            await self._run("ping", lambda client: client.ping())
            if not self.is_up:
                await self._recover()
        except StoreUnavailable:
            self.is_up = False
        except Exception as error:  # noqa: BLE001 - whatever keeps Redis from being made ready, it is down
            self._events.failed("recovery", error)
            self.is_up = False
        return self.is_up

    async def _recover(self) -> None:
        async with self._recovering:
            if self.is_up:
                return
            for action in self._on_recovery:
                await self._run("recovery", lambda _, action=action: action())  # type: ignore[misc]
            self.is_up = True
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
