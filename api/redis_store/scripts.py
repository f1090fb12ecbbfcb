"""Runs Lua scripts, and helps the stores with Redis's clock, messages, fan-out, SCAN and large values.

redis-py reloads a script that Redis has lost (NOSCRIPT, after a restart or failover).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline, PubSub
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from api.errors import StoreUnavailable
from api.redis_store.connections import BatchedScript
from api.redis_store.health_gated import HealthGated
from api.redis_store.keys import Keys

_MARKER: Final = re.compile(r"-- (?:name: (\w+)|shared)\n")


class Section(NamedTuple):
    """A part of a Lua file: an operation, or with no name, code that all operations below it share."""

    name: str
    line: int
    """The number of its first line in the file."""
    text: str


def sections(text: str) -> list[Section]:
    """The parts of a Lua file. `-- name: <operation>` and `-- shared` begin a part; code above the first is shared."""
    found = [Section("", 1, "")]
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if marker := _MARKER.fullmatch(line):
            found.append(Section(marker[1] or "", number, ""))
        found[-1] = found[-1]._replace(text=found[-1].text + line)
    return found


@cache
def lua(feature: str, operation: str) -> str:
    """The script of an operation: the prelude, the shared code above the operation, the operation itself.

    `feature` is a Lua file of this package without its suffix, such as `stores/breaker`. Each operation is a separate
    script, so a call neither sends nor runs code of other operations. Raises `KeyError` for an unknown operation.
    """
    parts = [_prelude()]
    for section in _sections_of(feature):
        if section.name in ("", operation):
            parts.append(section.text)
        if section.name == operation:
            return "".join(parts)
    raise KeyError(operation)


@cache
def _prelude() -> str:
    return (files("api.redis_store") / "prelude.lua").read_text("utf-8")


@lru_cache(maxsize=1)
def _sections_of(feature: str) -> list[Section]:
    """The parts of the file that was read last, for all of its operations."""
    return sections((files("api.redis_store") / f"{feature}.lua").read_text("utf-8"))


def read_all() -> None:
    """Reads every operation. Processes that are forked later have the scripts of this process's release.

    Their files may meanwhile be those of a newer one.
    """
    folder = Path(__file__).parent
    for path in folder.rglob("*.lua"):
        feature = path.relative_to(folder).with_suffix("").as_posix()
        for section in _sections_of(feature):
            if section.name:
                lua(feature, section.name)


def script(client: Redis, feature: str, operation: str) -> AsyncScript:
    """The operation as a script of `client`. redis-py sends its SHA-1, and the text only if Redis lacks the script."""
    return BatchedScript(client, lua(feature, operation))


async def replies_of(pipe: Pipeline) -> list[Any]:
    """Runs a pipeline and returns its replies in order.

    A refused command, such as one for a wrong type, gives its error.

    Raises any other error: a redirect, a slot that is being migrated, or a lost connection.
    """
    replies: list[Any] = await pipe.execute(raise_on_error=False)
    reply: Any = None
    try:
        for reply in replies:
            if isinstance(reply, RedisError):
                reply.__traceback__ = None  # refers to the frame of redis-py that lists the replies
                if type(reply) is not ResponseError:
                    raise reply
        return replies
    finally:
        del reply, replies


async def now_ms(client: Redis) -> int:
    """Returns Redis's clock in milliseconds since the epoch. All times that the fleet shares come from it."""
    return milliseconds(await client.time())


def milliseconds(reply: Sequence[int]) -> int:
    """Converts a reply of TIME: seconds and microseconds."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


IDLE_SECONDS: Final = 5.0
"""Seconds without a message after which the connection is pinged."""

Reader = Callable[[float], AbstractAsyncContextManager[Redis]]
"""Opens a separate client for reads that block for up to this many seconds."""


Signals = Mapping[str, Callable[[], None]]
"""Called at each message of a channel, and when the subscription is established: earlier messages are lost."""


async def messages(reader: Reader, channel: str, signals: Signals = MappingProxyType({})) -> AsyncIterator[str | None]:
    """Yields each message of a channel, and None each time the subscription is established.

    The same connection listens to the channels of `signals`. Raises `StoreUnavailable` when it is lost.
    """
    try:
        async with reader(IDLE_SECONDS) as client, client.pubsub() as subscribed:
            await subscribed.subscribe(channel, *signals)
            while True:
                message = await _next_message(subscribed)
                if message["type"] not in ("subscribe", "message"):
                    continue
                if message["channel"] in signals:
                    signals[message["channel"]]()
                else:
                    yield message["data"] if message["type"] == "message" else None
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error)) from error


async def _next_message(subscribed: PubSub) -> dict[str, Any]:
    """Returns the next message. Pings after a long silence; the reply is a message too. Raises `TimeoutError`."""
    message = await subscribed.get_message(timeout=IDLE_SECONDS)
    if message is None:
        await subscribed.ping()
        message = await subscribed.get_message(timeout=IDLE_SECONDS)
    if message is None:
        raise TimeoutError("Redis does not answer on the subscribed connection.")
    return dict(message)


T = TypeVar("T")


async def on_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs the calls concurrently and returns their results. Waits for all of them even if one fails, then raises."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    faults = [end for end in ends if isinstance(end, BaseException)]
    if not faults:
        return [end for end in ends if not isinstance(end, BaseException)]
    try:
        # Other errors come first: unlike an outage of Redis, they are bugs.
        raise min(faults, key=lambda one: isinstance(one, StoreUnavailable))
    finally:
        del faults, ends


SCANNED: Final = 1000
"""COUNT of one SCAN."""


async def scanned(redis: HealthGated, operation: str, home: str, pattern: str) -> AsyncIterator[list[str]]:
    """Yields the keys that match `pattern`, in batches. A key may come twice. `home` is any key of their slot.

    Keys that appear or disappear meanwhile may be missing. Raises `StoreUnavailable` if the slot moves to another
    shard: SCAN does not redirect, so the old shard would return only some of the keys, or none.
    """
    client = await _home(redis, operation, home)
    cursor = 0
    while True:
        cursor, found = await redis.run(
            operation,
            lambda client, at=cursor: client.scan(at, match=pattern, count=SCANNED),  # type: ignore[misc]
        )
        yield [key.decode("utf-8", "replace") for key in found]
        if cursor == 0:
            break
    if await _home(redis, operation, home) is not client:
        raise StoreUnavailable("The slot has moved to another shard.")


async def scanned_once(redis: HealthGated, operation: str, home: str, pattern: str) -> AsyncIterator[list[str]]:
    """Like `scanned`, but yields each key once."""
    seen: set[str] = set()
    async for found in scanned(redis, operation, home, pattern):
        fresh = set(found) - seen
        seen |= fresh
        yield sorted(fresh)


async def _home(redis: HealthGated, operation: str, key: str) -> Redis:
    """Returns the client of the shard that has all keys of the slot.

    The command is redirected if the shard lacks the slot, and refused for a missing key while the slot is being
    migrated.
    """
    await redis.run(operation, lambda client: client.exists(f"{key}:absent"))
    return redis.client


PIECE: Final = 512 * 1024
LIFETIME_MS: Final = 600 * 1000
"""Time that an upload may take. An unused one expires."""


async def uploaded(redis: HealthGated, keys: Keys, content: bytes) -> str:
    """Writes a large value in pieces, so that no command keeps Redis busy for long.

    Returns its temporary key, which a script then renames.
    """
    key = keys.upload(secrets.token_hex(8))
    for start in range(0, max(len(content), 1), PIECE):
        piece = content[start : start + PIECE]

        async def append(client: Redis, piece: bytes = piece) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.append(key, piece)
                pipe.pexpire(key, LIFETIME_MS)
                await pipe.execute()

        await redis.run("upload", append)
    return key


async def downloaded(redis: HealthGated, key: str) -> bytes | None:
    """Reads a large value in pieces; None if there is none. The value must not change meanwhile."""
    pieces: list[bytes] = []
    while True:
        start = len(pieces) * PIECE
        piece: Any = await redis.run(
            "download",
            lambda client, at=start: client.getrange(key, at, at + PIECE - 1),  # type: ignore[misc]
        )
        if not piece and not pieces:
            return None
        pieces.append(piece)
        if len(piece) < PIECE:
            return b"".join(pieces)
