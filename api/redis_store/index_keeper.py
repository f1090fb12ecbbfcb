"""Keeps the vector indexes as they should be, with traffic or without.

Each worker makes a lost index again, sees when one is complete, and says which it uses. One worker of the fleet at a
time drops those that nobody has used for `IDLE_SECONDS` and nobody needs: see `is_left_over`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.fleet import Duty
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.scripts import script
from api.redis_store.semantic_index import SemanticIndex

TEND_SECONDS: Final = 1.0
BUILDING_SECONDS: Final = 0.25
"""How often Redis is asked while it builds an index."""
RENEW_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 600.0
LIFETIME_MS: Final = 3600 * 1000
"""Longer than an index has to be idle."""


class IndexKeeper:
    """A worker's part of it. `duty` is the janitor's. `pace`: how much less often it tends, since others do too."""

    def __init__(
        self,
        gate: RedisGate,
        keys: Keys,
        index: SemanticIndex,
        duty: Duty,
        idle_seconds: float = IDLE_SECONDS,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._gate = gate
        self._keys = keys
        self._index = index
        self._duty = duty
        self._pace = pace
        self._idle_ms = round(idle_seconds * 1000)
        self._renew = script(gate.client, "index_renew")
        self._idle = script(gate.client, "index_idle")

    async def keep(self) -> None:
        """Tends for ever, jittered. A task of the worker's."""
        due = time.monotonic()
        while True:
            with suppress(StoreUnavailable):  # the gate says when Redis is back
                await self._index.tend()
                if time.monotonic() >= due:
                    due = time.monotonic() + RENEW_SECONDS
                    await self.renew()
                    await self.clean()
            pause = BUILDING_SECONDS if self._index.is_building else TEND_SECONDS * self._pace()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def renew(self) -> None:
        """Says which indexes this worker uses. Raises `StoreUnavailable`."""
        self._index.forget_unused(self._idle_ms / 1000)
        names = self._index.in_use()
        if names:
            key = self._keys.cache_index_uses
            arguments: list[str | int] = [LIFETIME_MS, *names]
            await self._gate.run("index_renew", lambda client: self._renew([key], arguments, client))

    async def clean(self) -> list[str]:
        """Drops what is left over, if that is this worker's duty now. Raises `StoreUnavailable`."""
        if not (self._index.supported and await self._duty.hold(2 * RENEW_SECONDS + 5)):
            return []
        return await self._gate.run("index_clean", self._clean)

    async def _clean(self, client: Redis) -> list[str]:
        listed: Any = await client.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
        ours = {name for raw in listed if (name := raw.decode("utf-8", "replace")).startswith(self._keys.cache_indexes)}
        arguments = [LIFETIME_MS, self._idle_ms, *ours]
        idle = {name.decode() for name in await self._idle([self._keys.cache_index_uses], arguments, client)}
        dropped = []
        for name in sorted(idle):
            info: Any = await client.execute_command("FT.INFO", name)  # type: ignore[no-untyped-call]
            if is_left_over(self._keys, name, int(info[b"num_docs"]), ours - idle):
                await client.execute_command("FT.DROPINDEX", name)  # type: ignore[no-untyped-call]
                dropped.append(name)
        return dropped


def is_left_over(keys: Keys, name: str, entries: int, used: Collection[str]) -> bool:
    """Whether an idle index can go: nothing is in it, or one of another kind over the same entries is used."""
    return entries == 0 or _embedder(keys, name) in {_embedder(keys, other) for other in used}


def _embedder(keys: Keys, name: str) -> str:
    return name.removeprefix(keys.cache_indexes).partition("-")[0]
