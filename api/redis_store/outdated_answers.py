"""Cached answers that new documents concern: found through the cache's own indexes, by the vectors of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from api.model import EmbedderIdentity, Vector
from api.ports.documents import CachedQuestion
from api.redis_store.cached_questions import EXACT, WANTED, cached_question
from api.redis_store.document_fields import owner_of
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.scripts import script
from api.redis_store.semantic_index import SemanticIndex

BATCH: Final = 250
"""Entries written by one command."""


class RedisOutdatedAnswers:
    """See `ports.OutdatedAnswers`."""

    def __init__(self, gate: RedisGate, keys: Keys, index: SemanticIndex) -> None:
        self._gate = gate
        self._keys = keys
        self._index = index
        self._expire = script(gate.client, "cache_expire")

    async def near(
        self, embedder: EmbedderIdentity, tenant: str, vectors: Sequence[Vector], floor: float, limit: int
    ) -> tuple[Sequence[CachedQuestion], bool]:
        """See `ports.OutdatedAnswers`. Not all of them while the index is being built."""
        name = await self._index.complete(embedder)
        if name is None:
            return (), False
        query = f"({await self._fresh(tenant)})=>[KNN {limit} @vector $v AS d]"
        found: dict[str, CachedQuestion] = {}
        for vector in vectors:
            command = ("FT.SEARCH", name, query, "PARAMS", 2, "v", vector, "SORTBY", "d", "LIMIT", 0, limit)
            asked = (*command, "DIALECT", 2, "RETURN", len(WANTED) + 1, "d", *WANTED)
            results = await self._results(asked)
            if results is None:
                return (), False
            near = [one for one in results if 1.0 - float(one[b"extra_attributes"][b"d"]) >= floor]
            if len(near) >= limit:
                return (), False
            found |= {question.entry: question for question in map(_question, near) if question is not None}
        return list(found.values()), True

    async def incomparable(self, embedder: EmbedderIdentity, tenant: str, limit: int) -> tuple[Sequence[str], bool]:
        """See `ports.OutdatedAnswers`."""
        own = await self._index.complete(embedder)
        entries: list[str] = []
        fresh = await self._fresh(tenant)
        for name in await self._indexes():
            is_own = name.startswith(self._keys.cache_indexes + embedder.fingerprint)
            if is_own and name != own:
                continue  # one that is left over from another kind
            query = fresh + (f" @compared:{{{EXACT}}}" if is_own else "")
            results = await self._results(("FT.SEARCH", name, query, "NOCONTENT", "LIMIT", 0, limit, "DIALECT", 2))
            if results is None or len(results) >= limit:
                return (), False
            entries += [one[b"id"].decode() for one in results]
        return entries, own is not None

    async def expire(self, entries: Sequence[str]) -> int:
        """See `ports.OutdatedAnswers`."""
        ended = 0
        for start in range(0, len(entries), BATCH):
            keys = list(entries[start : start + BATCH])
            ended += int(await self._gate.run("expire", lambda client, keys=keys: self._expire(keys, [], client)))  # type: ignore[misc]
        return ended

    async def expire_all(self, tenant: str) -> int:
        """See `ports.OutdatedAnswers`. Goes over the keys themselves: it needs no index."""
        owner, cursor, ended = owner_of(tenant).encode(), 0, 0
        pattern = f"{self._keys.cache_entries}*"
        while True:
            cursor, found = await self._gate.run(
                "expire",
                lambda client, at=cursor: client.scan(at, match=pattern, count=1000),  # type: ignore[misc]
            )
            keys = [key.decode("utf-8", "replace") for key in found]
            owners = await self._gate.run("expire", lambda client, keys=keys: _owners(client, keys))  # type: ignore[misc]
            ended += await self.expire([key for key, of in zip(keys, owners, strict=True) if of == owner])
            if cursor == 0:
                return ended

    async def _fresh(self, tenant: str) -> str:
        """The part of a query that asks for a tenant's entries, without those that are stale already."""
        seconds, micros = await self._gate.run("expire", lambda client: client.time())
        return f"@owner:{{{owner_of(tenant)}}} @expires_ms:[({seconds * 1000 + micros // 1000} +inf]"

    async def _indexes(self) -> list[str]:
        listed: Any = await self._gate.run("expire", lambda client: client.execute_command("FT._LIST"))  # type: ignore[no-untyped-call]
        names = [name.decode("utf-8", "replace") for name in listed]
        return [name for name in names if name.startswith(self._keys.cache_indexes)]

    async def _results(self, command: tuple[Any, ...]) -> list[Any] | None:
        """None where the index is gone, or of another form."""

        async def ask(client: Redis) -> Any:
            try:
                return await client.execute_command(*command)  # type: ignore[no-untyped-call]
            except ResponseError:
                return None

        reply = await self._gate.run("expire", ask)
        return None if reply is None else list(reply[b"results"])


def _question(found: Any) -> CachedQuestion | None:
    fields = {name.decode(): value for name, value in found[b"extra_attributes"].items()}
    with suppress(KeyError, ValueError):
        return cached_question(found[b"id"].decode(), fields)
    return None


async def _owners(client: Redis, keys: Sequence[str]) -> list[Any]:
    if not keys:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(key, "owner")
        replies = await pipe.execute(raise_on_error=False)
    return [None if isinstance(reply, RedisError) else reply for reply in replies]
