"""What is asked of every partition of the cache at once. Look-ups and stores are not: each concerns one partition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.gate import Gate

T = TypeVar("T")
SCANNED = 1000
"""Keys that Redis looks at for one call of SCAN."""


async def on_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each gives. Where one fails the others are carried out to their end; then it is raised."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    faults = [end for end in ends if isinstance(end, BaseException)]
    # What is not a fault of Redis is one of the code's own, and says more.
    for fault in sorted(faults, key=lambda one: isinstance(one, StoreUnavailable)):
        raise fault
    return [end for end in ends if not isinstance(end, BaseException)]


async def scanned(gate: Gate, operation: str, part: CacheKeys, match: str) -> AsyncIterator[list[str]]:
    """The keys of a partition that match, as they are found; one may come twice.

    Raises `StoreUnavailable` also where the partition has moved to another shard meanwhile: SCAN asks whatever shard
    it is sent to, which then finds nothing.
    """
    client = await _home(gate, operation, part)
    cursor = 0
    while True:
        cursor, found = await gate.run(
            operation,
            lambda client, at=cursor: client.scan(at, match=match, count=SCANNED),  # type: ignore[misc]
        )
        yield [key.decode("utf-8", "replace") for key in found]
        if cursor == 0:
            break
    if await _home(gate, operation, part) is not client:
        raise StoreUnavailable("the partition has moved to another shard")


async def _home(gate: Gate, operation: str, part: CacheKeys) -> Redis:
    """A client of the shard that has the partition: one that has it not sends a command with a key on."""
    await gate.run(operation, lambda client: client.exists(part.invalidated))
    return gate.client
