"""Goes over keys a batch at a time: Redis is never kept for longer than a batch takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from api.redis_store.gate import RedisGate

SCANNED: Final = 500
"""Keys that Redis looks at for one call of SCAN."""


async def scanned(gate: RedisGate, operation: str, pattern: str) -> AsyncIterator[list[str]]:
    """The keys like `pattern`, each once. What comes or goes meanwhile may be among them or not."""
    seen: set[str] = set()
    cursor = 0
    while True:
        cursor, found = await gate.run(
            operation,
            lambda client, at=cursor: client.scan(at, match=pattern, count=SCANNED),  # type: ignore[misc]
        )
        fresh = {key.decode("utf-8", "replace") for key in found} - seen
        seen |= fresh
        yield sorted(fresh)
        if cursor == 0:
            return
