"""The version of the keys' schema: keeps incompatible releases from using the keys in Redis at the same time.

docs/upgrades.md explains the rule. Redis holds the fleet's schema. A release with a newer major version waits until no
older worker is alive, then writes its own version. A worker that finds a newer major version stops using the keys. A
worker that cannot use the keys keeps serving as if Redis were down; refusing to start would block a rolling restart.
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
    """Releases with the same `major` version can share a Redis. `minor` grows with each new field."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """Parses `major.minor`; None for other text."""
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
        return cls(int(found[1]), int(found[2])) if found else None


SCHEMA: Final = Schema(1, 2)
"""The schema of this release. Workers from this one on read encrypted texts, if they have the key."""
ENCRYPTED: Final = Schema(2, 0)
"""The schema of a fleet that encrypts. Releases before `SCHEMA` would take encrypted documents for text."""
FIRST: Final = Schema(1, 0)
"""The schema of releases that do not report one."""


LOOK_SECONDS: Final = 2.0
"""Seconds between two checks of a worker."""


async def oldest(client: Redis, keys: Keys, own: Schema = SCHEMA) -> Schema:
    """Returns the lowest schema of all live workers and `own`. The client must be of the shard of `keys.workers`."""
    ids: Any = await client.zrangebyscore(keys.workers, f"({await now_ms(client)}", "+inf")
    async with client.pipeline(transaction=False) as pipe:
        for worker in ids:
            pipe.hmget(keys.worker(worker.decode()), "id", "schema")
        found = await pipe.execute()
    return min(
        [own, *(Schema.parsed((said or b"").decode("utf-8", "replace")) or FIRST for name, said in found if name)]
    )


class SchemaConflict(StoreUnavailable):
    """This release cannot use the keys in Redis, now or ever."""


class FleetSchema:
    """The schema check of one worker. Create it before anything else uses the client.

    No command runs, on any shard, before the check succeeds. An earlier success stays valid while the shard with the
    schema is down; a worker that starts during that outage waits.

    `on_conflict` is called once per conflict with a one-line message. `states=False` only checks: a process that only
    reads does not write a version. `own`: by default that of this release, or `ENCRYPTED` if it encrypts.
    """

    def __init__(
        self,
        redis: AnyHealthGated,
        keys: Keys,
        worker: str,
        release: str,
        on_conflict: Callable[[str], None],
        own: Schema | None = None,
        *,
        states: bool = True,
    ) -> None:
        self.own = own or (ENCRYPTED if states and redis.texts.encrypts else SCHEMA)
        self._redis = redis
        self._home = redis.of(keys.corpus_schema)
        self._agreed = False
        self._covered: list[AnyHealthGated] = []
        self._keys = keys
        self._worker = worker
        self._release = release
        self._on_conflict = on_conflict
        self._states = states
        self.conflict = ""
        """Why this worker cannot use the keys, in one line; empty if it can."""
        self._settle = script(redis.client, "schema", "settle")
        self._home.on_recovery(lambda: self.agree(self._home.client))
        redis.on_each_recovery(self._known)

    def cover(self, redis: AnyHealthGated) -> None:
        """While there is a conflict, also stops the use of another Redis: the one for breakers."""
        self._covered.append(redis)
        redis.on_each_recovery(self._allowed)

    async def _allowed(self) -> None:
        if self.conflict:
            raise SchemaConflict(self.conflict)

    async def agree(self, client: Redis) -> None:
        """Checks the schema, and reports a new conflict once. Raises `SchemaConflict`."""
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
        """Checks the schema before a shard is used, unless it is known."""
        if self._agreed:
            return
        try:
            await self.agree(self._home.client)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Cannot read the schema of the keys: {error}") from error

    async def keep_agreeing(self) -> None:
        """Checks forever, with jitter. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            with suppress(StoreUnavailable):
                await self.look()

    async def look(self) -> None:
        """Shuts the client if the schema has changed. It opens again once `agree` succeeds."""
        try:
            await self._home.run("schema", self.agree)
        except SchemaConflict:
            self._redis.shut()
            raise

    async def _settled(self, client: Redis) -> str:
        """Returns the version that applies; '' if there is none yet."""
        key = self._keys.corpus_schema
        version: Any = await client.hget(key, "version")
        found = Schema.parsed(version.decode("utf-8", "replace")) if version is not None else None
        if not self._states or (found is not None and found >= self.own):
            return str(found or self.own)
        is_raised = found is None or found.major < self.own.major
        beside = SCHEMA if self.own == ENCRYPTED else Schema(self.own.major, 0)
        alone = not is_raised or await oldest(client, self._keys, self.own) >= beside
        own = (self.own.major, self.own.minor)
        arguments: list[str | int] = [*own, int(alone), self._worker, self._release]
        settled: Any = await self._settle([key], arguments, client)
        return str(settled.decode("utf-8", "replace"))

    def _judged(self, settled: str) -> str:
        """Returns the conflict in one line; '' if there is none."""
        own = self.own
        found = Schema.parsed(settled)
        reads = {own.major, ENCRYPTED.major} if own == SCHEMA else {own.major}
        if found is not None and found.major in reads:
            return ""
        if not settled or (found is not None and found.major < own.major):
            return (
                f"Workers of an older release are running, and the keys in Redis have schema {settled or FIRST}. This "
                f"release needs {own} and uses the keys once the last of those workers has stopped."
            )
        return (
            f"The keys in Redis have schema {settled}, but this release needs {own}. "
            "Use the newer release or another REDIS_PREFIX."
        )
