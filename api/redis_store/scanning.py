"""Goes over the keys of one slot a batch at a time: Redis is never kept for longer than a batch takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.redis_store.gate import Gate

SCANNED: Final = 1000
"""Keys that Redis looks at for one call of SCAN."""


async def scanned(gate: Gate, operation: str, home: str, pattern: str) -> AsyncIterator[list[str]]:
    """The keys like `pattern`, as they are found; one may come twice. `home` is any key of their slot.

    What comes or goes meanwhile may be among them or not. Raises `StoreUnavailable` also where the slot moves, or has
    moved, to another shard: SCAN asks whatever shard it is sent to, which then finds but a part, or nothing.
    """
    client = await _home(gate, operation, home)
    cursor = 0
    while True:
        cursor, found = await gate.run(
            operation,
            lambda client, at=cursor: client.scan(at, match=pattern, count=SCANNED),  # type: ignore[misc]
        )
        yield [key.decode("utf-8", "replace") for key in found]
        if cursor == 0:
            break
    if await _home(gate, operation, home) is not client:
        raise StoreUnavailable("the slot has moved to another shard")


async def scanned_once(gate: Gate, operation: str, home: str, pattern: str) -> AsyncIterator[list[str]]:
    """The same, each key once."""
    seen: set[str] = set()
    async for found in scanned(gate, operation, home, pattern):
        fresh = set(found) - seen
        seen |= fresh
        yield sorted(fresh)


async def _home(gate: Gate, operation: str, key: str) -> Redis:
    """A client of the shard that has the slot, and all of it.

    One that has it not sends a command with a key on; one that is giving it away says so of a key that is not there.
    """
    await gate.run(operation, lambda client: client.exists(f"{key}:absent"))
    return gate.client
