"""Looks at how a Redis is set up: when it is found, after each outage, and now and then for what was changed since."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from api.errors import StoreUnavailable
from api.ports.stores import Store, StoreWarning
from api.redis_store.gate import RedisGate
from api.redis_store.server_facts import server_facts, warning, warnings_of

LOOK_SECONDS: Final = 60.0

Heard = Callable[[StoreWarning, bool], None]
"""Told of a warning when it begins (True) and when it is over (False)."""


class RedisCheckup:
    """What is to be said of the Redis behind a gate."""

    def __init__(self, gate: RedisGate, store: Store, heard: Heard = lambda warning, begins: None) -> None:
        self._gate = gate
        self._store: Store = store
        self._heard = heard
        self._found: list[StoreWarning] = []
        gate.after_recovery(self.look)

    @property
    def warnings(self) -> Sequence[StoreWarning]:
        """As of the last look; of one that takes no writes, that alone."""
        return [warning(self._store, "read_only")] if self._gate.is_read_only else self._found

    async def look(self) -> None:
        """Asks the server. Raises `StoreUnavailable`."""
        found = await self._gate.run("info", self._ask)
        before, self._found = self._found, found
        for old in before:
            if old not in found:
                self._heard(old, False)
        for new in found:
            if new not in before:
                self._heard(new, True)

    async def _ask(self, client: Redis) -> list[StoreWarning]:
        try:
            info: Any = await client.info()
        except NoPermissionError:
            return [warning(self._store, "unchecked")]
        return warnings_of(server_facts(info), self._store)

    async def keep_looking(self) -> None:
        """For ever, jittered: somebody may have set it right meanwhile. A task of the worker's."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            try:
                await self.look()
            except StoreUnavailable:
                continue  # looked at again when it is found
