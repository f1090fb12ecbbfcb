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
from api.redis_store.opening import AnyGate
from api.redis_store.server_facts import server_facts, warning, warnings_of

LOOK_SECONDS: Final = 60.0

Heard = Callable[[StoreWarning, bool], None]
"""Told of a warning when it begins (True) and when it is over (False)."""


class RedisCheckup:
    """What is to be said of the Redis behind a gate; of a cluster, what is to be said of any shard, once."""

    def __init__(self, gate: AnyGate, store: Store, heard: Heard = lambda warning, begins: None) -> None:
        self._gate = gate
        self._store: Store = store
        self._heard = heard
        self._found: dict[RedisGate, list[StoreWarning]] = {}
        gate.after_each_recovery(self.look)

    @property
    def warnings(self) -> Sequence[StoreWarning]:
        """As of the last look; of one that takes no writes, that alone."""
        return [warning(self._store, "read_only")] if self._gate.is_read_only else self._known()

    async def look(self) -> None:
        """Asks the server, or every shard that is up. Raises `StoreUnavailable` where none can be asked."""
        servers = self._gate.servers
        ends = await asyncio.gather(*(server.run("info", self._ask) for server in servers), return_exceptions=True)
        before = self._known()
        self._found = {server: found for server, found in self._found.items() if server in servers}
        faults: list[BaseException] = []
        for server, end in zip(servers, ends, strict=True):
            if isinstance(end, BaseException):
                faults.append(end)
            else:
                self._found[server] = end
        self._tell(before, self._known())
        if faults and len(faults) == len(servers):
            raise faults[0]

    def _known(self) -> list[StoreWarning]:
        """Of all servers, each once, and those that are down as they were last seen."""
        return list(dict.fromkeys(warning for found in self._found.values() for warning in found))

    def _tell(self, before: Sequence[StoreWarning], now: Sequence[StoreWarning]) -> None:
        for old in before:
            if old not in now:
                self._heard(old, False)
        for new in now:
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
