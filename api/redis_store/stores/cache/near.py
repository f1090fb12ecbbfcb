"""The near cache: a worker's copies of exact entries. A repeated question then costs no round trip to Redis.

Copies stay coherent through Redis's invalidation messages (`CLIENT TRACKING ON BCAST`), on a separate connection:

- Whatever takes an entry out of service changes its key: deletion, new documents, quarantine, eviction, a newer answer,
  FLUSHALL. Redis announces each change, and the copy goes. A lost connection drops all copies.
- TIME is the heartbeat. Redis answers it after the messages about all earlier changes. A copy is served only if a TIME
  that was sent at most `SILENCE` ago has been answered. So a worker, a network or a Redis that stood still cannot serve
  what was invalidated meanwhile: only the time of sending counts.
- A copy is not kept if any message arrived while its entry was read: it may be older than the message.
- The reply to TIME is Redis's clock, so no copy outlives the lifetime of its answer.
- The connection subscribes to a channel without messages. So Redis limits what waits for a worker that stands still
  (`client-output-buffer-limit pubsub`), and closes the connection above it.

Heartbeats are sent only while questions could use them. An idle worker sends a TIME every few seconds.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from api.cancellation import cancel_and_wait
from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGated
from api.redis_store.scripts import IDLE_SECONDS, Reader, milliseconds
from api.values import CachedAnswer, CacheMatch

SILENCE: Final = 0.045
"""Seconds after the sending of the last answered heartbeat in which copies are served. The promise is 50 ms."""
BEAT: Final = 0.015
"""Seconds between heartbeats while questions use them."""
RETRY_SECONDS: Final = 1.0
REFUSED_SECONDS: Final = 60.0
"""Seconds until the next attempt after Redis refused to send invalidation messages."""
PER_ANSWER: Final = 2048
"""Estimated bytes of a copy besides its texts."""
PER_SOURCE: Final = 1024
"""The same for each source."""
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps, where the system has one."""
MESSAGE: Final = object()
"""Stands for an invalidation message in the sequence of replies."""


def now() -> float:
    """Returns seconds of a clock that is never set."""
    return time.clock_gettime(_CLOCK)


class Copies:
    """The copies by key, at most `max_bytes` of memory. The least recently used goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[str, tuple[CachedAnswer, int]] = OrderedDict()
        self.bytes = 0
        self.changes = 0
        """Grows with each change of any entry. A read that began at another number may have an older entry."""

    def find(self, key: str) -> CachedAnswer | None:
        """Returns the copy of an entry."""
        found = self._answers.get(key)
        if found is None:
            return None
        self._answers.move_to_end(key)
        return found[0]

    def add(self, key: str, answer: CachedAnswer, read_at: int) -> None:
        """Keeps a copy, unless an entry has changed since `changes` was `read_at`."""
        held = self._answers.get(key)
        if held is not None and held[0] is answer:
            return
        size = estimated(answer)
        if read_at != self.changes or size > self._max_bytes:
            return
        self.drop(key)
        self._answers[key] = answer, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            self.drop(next(iter(self._answers)))

    def drop(self, key: str) -> None:
        """Drops the copy of an entry."""
        if (gone := self._answers.pop(key, None)) is not None:
            self.bytes -= gone[1]

    def changed(self, keys: list[str] | None) -> None:
        """Drops the copies of changed entries. None: all."""
        self.changes += 1
        if keys is None:
            self._answers.clear()
            self.bytes = 0
            return
        for key in keys:
            self.drop(key)


def estimated(answer: CachedAnswer) -> int:
    """The bytes of memory that a copy takes at most."""
    texts = sys.getsizeof(answer.question) + sys.getsizeof(answer.answer) + len(answer.unread or ()) * PER_SOURCE
    parts = ((one.text, one.title, one.quote, one.heading, one.source, one.version) for one in answer.sources)
    return PER_ANSWER + texts + sum(PER_SOURCE + sum(map(sys.getsizeof, texts_of)) for texts_of in parts)


class Heartbeats:
    """When the heartbeats were sent, and what the last answered one proves. Times in seconds of `now`."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque()
        self._proven = -SILENCE
        """When the last answered heartbeat was sent: all earlier changes are known."""
        self._redis_ms = 0
        """Redis's clock then or a little later, without its fraction."""

    def sent(self, at: float) -> None:
        """Notes a heartbeat, before it is sent."""
        self._sent.append(at)

    def answered(self, redis_ms: int) -> None:
        """Notes the reply to the oldest heartbeat without one. After `lost`, late replies may still arrive."""
        if self._sent:
            self._proven, self._redis_ms = self._sent.popleft(), redis_ms

    def lost(self) -> None:
        """Forgets all: the connection is gone."""
        self._sent.clear()
        self._proven = -SILENCE

    def clock(self, at: float) -> int | None:
        """Redis's clock in milliseconds, rather late than early; None if copies may be out of date."""
        since = at - self._proven
        return None if since > SILENCE else self._redis_ms + 1 + int(since * 1000)


class NearCache:
    """One worker's near cache. It works with a single Redis: `redis` is its client, `reader` opens the connection.

    `prefix`: the common prefix of all entries.
    """

    def __init__(self, redis: HealthGated, reader: Reader, prefix: str, max_bytes: int) -> None:
        self._redis = redis
        self._reader = reader
        self._prefix = prefix
        self._beats = Heartbeats()
        self._wanted = asyncio.Event()
        self._restarted = asyncio.Event()
        self._was_refused = False
        self.copies = Copies(max_bytes)
        self.hits = 0
        self.is_tracking = False
        """True while Redis announces changes to this worker."""
        redis.on_recovery(self._restart)

    @property
    def size(self) -> int:
        """Estimated bytes of the copies."""
        return self.copies.bytes

    def find(self, key: str) -> CacheMatch | None:
        """Returns a fresh copy of an entry, if it is certain that the entry has not changed. No I/O."""
        answer = self.copies.find(key)
        if answer is None:
            return None
        if not self._wanted.is_set():
            self._wanted.set()
        clock = self._beats.clock(now())
        if clock is None or clock >= answer.expires_ms or not self._redis.is_up:
            return None
        self.hits += 1
        return CacheMatch(answer, "exact", 1.0, clock, near=True)

    def keep(self, key: str, answer: CachedAnswer, read_at: int) -> None:
        """Keeps a copy of an entry that was read when `copies.changes` was `read_at`."""
        if self.is_tracking:
            self.copies.add(key, answer, read_at)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def keep_tracking(self) -> None:
        """Listens to Redis forever. Runs as a task of the worker."""
        while True:
            seconds = RETRY_SECONDS
            self._restarted.clear()
            try:
                async with self._reader(IDLE_SECONDS) as client:
                    connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
                    await self._track(connection)
                    await _first_of(self._listen(connection), self._beat(connection), self._restarted.wait())
                    seconds = 0.0
            except ResponseError as error:
                self._refused(error)
                seconds = REFUSED_SECONDS
            except (RedisError, StoreUnavailable, OSError, TimeoutError):
                pass  # the health-gated client reports an outage
            finally:
                self._lost()
            await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _track(self, connection: AbstractConnection) -> None:
        """Asks Redis for messages. Raises `ResponseError` if it refuses."""
        parser: Any = connection._parser
        parser.set_invalidation_push_handler(self._invalidated)
        parser.set_pubsub_push_handler(_ignored)
        await connection.send_command("SUBSCRIBE", self._prefix)
        await connection.read_response(push_request=True)
        await connection.send_command("CLIENT TRACKING", "ON", "BCAST", "PREFIX", self._prefix)
        await connection.read_response()
        self.copies.changed(None)  # of reads that began before this, nobody knows
        self.is_tracking = True

    async def _invalidated(self, message: list[Any]) -> object:
        self.copies.changed(message[1])
        return MESSAGE

    async def _listen(self, connection: AbstractConnection) -> None:
        while True:
            reply = await connection.read_response(push_request=True)
            if reply is not MESSAGE:
                self._beats.answered(milliseconds(reply))

    async def _beat(self, connection: AbstractConnection) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()
            self._beats.sent(now())
            await connection.send_command("TIME")
            await asyncio.sleep(BEAT)

    async def _restart(self) -> None:
        """Opens another connection when Redis was lost and is back: it may be another server."""
        self._lost()
        self._restarted.set()

    def _lost(self) -> None:
        self.is_tracking = False
        self._beats.lost()
        self.copies.changed(None)

    def _refused(self, error: ResponseError) -> None:
        if not self._was_refused:
            self._was_refused = True
            advice = "Redis refuses CLIENT TRACKING, so this worker has no near cache. See `ragherd redis-acl`."
            structlog.get_logger("ragherd.cache").warning("near_cache_off", message=advice, error=str(error))


async def _ignored(message: list[Any]) -> object:
    return MESSAGE


async def _first_of(*forever: Coroutine[Any, Any, Any]) -> None:
    """Runs all until the first ends, and raises its error."""
    tasks = [asyncio.create_task(one) for one in forever]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for place in reversed(range(len(tasks))):
            if tasks[place].done():
                tasks.pop(place).result()  # no name here holds the task, because its error refers to this frame
    finally:
        await cancel_and_wait(tasks)
