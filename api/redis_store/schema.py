"""The form of the keys in Redis, as a number: docs/upgrades.md has the rule. Imports nothing local.

Keeps workers whose releases can not share the keys in Redis from using them at the same time.

The fleet's schema stands in Redis. A release with a newer one waits until no worker of the older lives, and then puts
its own there; a worker that finds a newer one than its own leaves the keys alone. Whoever has to wait, or to leave,
serves without the shared memory, as while Redis is down: to refuse to start would hold up a rolling restart for ever.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.errors import StoreUnavailable
from api.redis_store.client import AnyHealthGated
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms, script


@dataclass(frozen=True, slots=True, order=True)
class Schema:
    """Releases with the same `major` share a Redis, whatever their `minor`, which grows with each further field."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """None for what is no schema."""
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
        return cls(int(found[1]), int(found[2])) if found else None


SCHEMA: Final = Schema(1, 0)
"""That of this release."""
FIRST: Final = Schema(1, 0)
"""That of releases which did not say theirs."""


LOOK_SECONDS: Final = 2.0
"""How often a worker looks whether the schema is still one that it can live with."""


class SchemaConflict(StoreUnavailable):
    """The keys in Redis are, for now or for good, not for this release."""


class FleetSchema:
    """For one worker. Made before anything else asks the redis: nobody passes before it agrees, to no shard.

    What a worker has agreed to holds while the shard is away that the schema is on; one that starts meanwhile waits.

    `on_conflict` is told in a line, once, what keeps this worker from the keys. Without `states` it looks only: who
    reads makes no schema hold.
    """

    def __init__(
        self,
        redis: AnyHealthGated,
        keys: Keys,
        worker: str,
        release: str,
        on_conflict: Callable[[str], None],
        own: Schema = SCHEMA,
        *,
        states: bool = True,
    ) -> None:
        self._redis = redis
        self._home = redis.of(keys.corpus_schema)
        self._agreed = False
        self._covered: list[AnyHealthGated] = []
        self._keys = keys
        self._worker = worker
        self._release = release
        self._on_conflict = on_conflict
        self._own = own
        self._states = states
        self.conflict = ""
        """What keeps this worker from the keys, in one line; empty where nothing does."""
        self._settle = script(redis.client, "schema", "settle")
        self._home.on_recovery(lambda: self.agree(self._home.client))
        redis.on_each_recovery(self._known)

    def cover(self, redis: AnyHealthGated) -> None:
        """Keeps this worker from another Redis too, where breakers are, while it is known to be kept from the keys."""
        self._covered.append(redis)
        redis.on_each_recovery(self._allowed)

    async def _allowed(self) -> None:
        if self.conflict:
            raise SchemaConflict(self.conflict)

    async def agree(self, client: Redis) -> None:
        """Raises `SchemaConflict`, and says so once."""
        conflict = self._judged(await self._settled(client))
        self._agreed = not conflict
        if conflict:
            if conflict != self.conflict:
                self._on_conflict(conflict)
            self.conflict = conflict
            for redis in self._covered:
                redis.shut()
            raise SchemaConflict(conflict)
        self.conflict = ""

    async def _known(self) -> None:
        """Asks before a shard is used, unless that is known."""
        if self._agreed:
            return
        try:
            await self.agree(self._home.client)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the schema of the keys can not be asked: {error}") from error

    async def keep_agreeing(self) -> None:
        """Looks for ever, jittered. A task of the worker's."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            with suppress(StoreUnavailable):
                await self.look()

    async def look(self) -> None:
        """Shuts the gate where the schema is not this worker's any more; it opens when `agree` does."""
        try:
            await self._home.run("schema", self.agree)
        except SchemaConflict:
            self._redis.shut()
            raise

    async def _settled(self, client: Redis) -> str:
        """The version that holds; empty where none does yet."""
        key = self._keys.corpus_schema
        version: Any = await client.hget(key, "version")
        found = Schema.parsed(version.decode("utf-8", "replace")) if version is not None else None
        if not self._states or (found is not None and found >= self._own):
            return str(found or self._own)
        is_raised = found is None or found.major < self._own.major
        alone = not is_raised or await self._oldest(client) >= self._own.major
        own = (self._own.major, self._own.minor)
        arguments: list[str | int] = [*own, int(alone), self._worker, self._release]
        settled: Any = await self._settle([key], arguments, client)
        return str(settled.decode("utf-8", "replace"))

    async def _oldest(self, client: Redis) -> int:
        """The least major of all workers that live; this one's own where there is no other."""
        ids: Any = await client.zrangebyscore(self._keys.workers, f"({await now_ms(client)}", "+inf")
        async with client.pipeline(transaction=False) as pipe:
            for worker in ids:
                pipe.hmget(self._keys.worker(worker.decode()), "id", "schema")
            found = await pipe.execute()
        said = [Schema.parsed((schema or b"").decode("utf-8", "replace")) or FIRST for name, schema in found if name]
        return min([self._own.major, *(schema.major for schema in said)])

    def _judged(self, settled: str) -> str:
        """In one line; empty where there is none."""
        own = self._own
        found = Schema.parsed(settled)
        if found is not None and found.major == own.major:
            return ""
        if not settled or (found is not None and found.major < own.major):
            return (
                f"Workers of an older release live, whose keys in Redis have schema {settled or FIRST}, and this "
                f"release has {own}: they are not for it until the last of those workers has ended."
            )
        return (
            f"The keys in Redis have schema {settled}, and this release knows {own}: they are not for it. "
            "Use the newer release, or another REDIS_PREFIX."
        )
