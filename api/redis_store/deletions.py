"""Which answers operators have deleted: `rag:deleted`. A restored backup brings none of them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""Older answers are not restored: nobody knows whether they were deleted."""
MOST: Final = 10_000
BATCH: Final = 1000


class RedisDeletions:
    """See `ports.Deletions`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate.of(keys.cache_deleted)
        self._key = keys.cache_deleted
        self._note = script(gate.client, "deletions_note")

    async def note(self, marks: Sequence[str]) -> None:
        """See `ports.Deletions`."""
        await self.merge(dict.fromkeys(marks, 0))

    async def noted(self) -> Mapping[str, int]:
        """See `ports.Deletions`."""
        found: Any = await self._gate.run("deletions", lambda client: client.zrange(self._key, 0, -1, withscores=True))
        return {mark.decode("utf-8", "replace"): int(at) for mark, at in found}

    async def merge(self, marks: Mapping[str, int]) -> None:
        """See `ports.Deletions`."""
        pairs = list(marks.items())
        for start in range(0, len(pairs), BATCH):
            flat = [part for pair in pairs[start : start + BATCH] for part in pair]
            arguments: list[str | int] = [LIFETIME_MS, MOST, *flat]
            await self._gate.run("deletions", lambda client, a=arguments: self._note([self._key], a, client))  # type: ignore[misc]
