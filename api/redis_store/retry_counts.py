"""The fleet's calls and retries of the last minute: what the retry budget is a share of."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from api.errors import StoreUnavailable
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

SYNC_SECONDS: Final = 0.25
BUCKET_SECONDS: Final = 10
BUCKETS: Final = 6
LIFETIME_MS: Final = 120_000


class _Budget(Protocol):
    """A worker's budget."""

    def take_unsent(self) -> tuple[int, int]: ...

    def fleet_is(self, calls: int, retries: int) -> None: ...

    def fleet_is_unknown(self) -> None: ...


class FleetRetries:
    """`rag:stats:retries`. What could not be sent is let go: it counts for a minute only."""

    def __init__(self, gate: Gates, keys: Keys, budget: _Budget) -> None:
        self._key = keys.retries
        self._gate = gate.of(self._key)
        self._budget = budget
        self._add = script(gate.client, "retries_add")

    async def sync(self) -> None:
        """Sends this worker's counts and takes over the fleet's; nothing while there is nothing to send."""
        calls, retries = self._budget.take_unsent()
        if not calls and not retries:
            return
        arguments = [calls, retries, BUCKET_SECONDS, BUCKETS, LIFETIME_MS]
        try:
            found = await self._gate.run("retries", lambda client: self._add([self._key], arguments, client))
        except StoreUnavailable:
            self._budget.fleet_is_unknown()
            return
        self._budget.fleet_is(int(found[0]), int(found[1]))

    async def keep_in_step(self) -> None:
        """Syncs for ever. A task of the worker's."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()
