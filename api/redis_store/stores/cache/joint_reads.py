"""Reads of the cache that share a round trip: with other commands, and with the reads of other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from api.cancellation import log_failure, wait_with_lag
from api.errors import StoreUnavailable
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGated
from api.redis_store.stores.cache.semantic_index import FIELDS

BATCH: Final = 100
"""Entries that one command reads for repeats, and other commands in its write."""
MOST_AT_ONCE: Final = 2
"""Such commands of a worker under way."""


async def run_along(
    read: AsyncScript,
    keys: Sequence[str],
    arguments: Sequence[str | int],
    along: Sequence[tuple[Any, ...] | None],
    client: BatchingRedis,
) -> list[Any]:
    """Runs a script, and sends one or more other commands in the same write. Returns all replies, the script's first.

    A command that is None or that fails has None as its reply. A failure of the script is raised.
    """
    others = [one for one in along if one is not None]
    # As a command: redis-py would first ask Redis whether it has the script.
    command = ("EVALSHA", read.sha, len(keys), *keys, *arguments)
    reply, *rest = await client.execute_together([command, *others])
    if isinstance(reply, NoScriptError):
        reply = await read(keys, arguments, client)
    elif isinstance(reply, RedisError):
        try:
            raise reply
        finally:
            del reply
    replies = iter([None if isinstance(one, RedisError) else one for one in rest])
    return [reply, *(next(replies) if one is not None else None for one in along)]


class JointReads:
    """Reads entries of one partition for many requests in one round trip. A command costs more than an entry.

    Requests that ask in the same turn of the event loop share a command. So do those that ask while `MOST_AT_ONCE` are
    under way. Gives up after `seconds`: a late command continues in the background.
    """

    def __init__(self, redis: HealthGated, read: AsyncScript, seconds: float) -> None:
        self._redis = redis
        self._read = read
        self._seconds = seconds
        self._wanted: dict[str, int] = {}
        """The entries that the next command reads, and their places in its reply."""
        self._waiting: list[asyncio.Future[list[Any]]] = []
        self._along: list[tuple[Any, ...]] = []
        """The commands that are sent with it."""
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def of(
        self, entries: Sequence[str], along: tuple[Any, ...] | None = None
    ) -> tuple[int, list[list[bytes | None]], Any]:
        """Redis's clock, the `FIELDS` of each entry, and the reply to `along`. Raises `StoreUnavailable`.

        `along`: a command to send in the same write. Its reply is None if it fails.
        """
        loop, wanted = asyncio.get_running_loop(), self._wanted
        places = [wanted.setdefault(entry, len(wanted) + 1) for entry in entries]
        waiter = loop.create_future()
        self._waiting.append(waiter)
        number = None if along is None else len(self._along)
        if along is not None:
            self._along.append(along)
        if len(self._wanted) >= BATCH or len(self._along) >= BATCH:
            self._send()
        elif not self._scheduled and len(self._running) < MOST_AT_ONCE:
            self._scheduled = True
            loop.call_soon(self._send)
        try:
            reply, *rest = await waiter
        finally:
            del waiter  # it holds its error, which refers to this frame
        return int(reply[0]), [reply[place] for place in places], None if number is None else rest[number]

    def _send(self) -> None:
        self._scheduled = False
        if self._waiting:
            sending = asyncio.create_task(self._sent(list(self._wanted), self._along, self._waiting))
            self._wanted, self._along, self._waiting = {}, [], []
            self._running.add(sending)
            sending.add_done_callback(self._ended)

    def _ended(self, sending: asyncio.Task[None]) -> None:
        self._running.discard(sending)
        if not self._scheduled:
            self._send()

    async def _sent(
        self, entries: list[str], along: list[tuple[Any, ...]], waiting: list[asyncio.Future[list[Any]]]
    ) -> None:
        alone, together = partial(self._read, entries, FIELDS), partial(run_along, self._read, entries, FIELDS, along)
        command = self._redis.run("exact_lookup", together if along else alone)
        reading: asyncio.Task[list[Any]] = asyncio.create_task(command)
        log_failure(reading, StoreUnavailable)
        await wait_with_lag(reading, self._seconds)
        error: BaseException | None = StoreUnavailable(f"Redis took longer than {self._seconds:g} s")
        if reading.done():
            error = StoreUnavailable("cancelled") if reading.cancelled() else reading.exception()
        for waiter in waiting:
            if waiter.done():
                continue  # its request was cancelled
            if error is None:
                waiter.set_result(reading.result() if along else [reading.result()])
            else:
                waiter.set_exception(error)
