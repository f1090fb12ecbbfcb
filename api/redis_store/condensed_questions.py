"""Follow-up questions as they were rewritten to stand alone."""

from __future__ import annotations

from typing import Any

from api.redis_store.gate import Gates
from api.redis_store.keys import Keys


class RedisCondensedQuestions:
    """See `ports.CondensedQuestions`: `rag:condensed:<digest>`, for as long as an answer is fresh."""

    def __init__(self, gate: Gates, keys: Keys, ttl_ms: int) -> None:
        self._gate = gate
        self._keys = keys
        self._ttl_ms = ttl_ms

    async def find(self, place: str) -> str | None:
        """See `ports.CondensedQuestions`."""
        key = self._keys.condensed(place)
        found: Any = await self._gate.of(key).run("condensed", lambda client: client.get(key))
        return None if found is None else str(found.decode())

    async def remember(self, place: str, question: str) -> None:
        """See `ports.CondensedQuestions`."""
        key = self._keys.condensed(place)
        await self._gate.of(key).run("condensed", lambda client: client.set(key, question, px=self._ttl_ms))
