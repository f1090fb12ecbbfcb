"""Finds cached answers that new documents may change, and makes them stale.

It searches the cache's own indexes with the vectors of the documents. A tenant's answers are in all partitions, so all
of them are searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

from redis.asyncio import Redis
from redis.exceptions import MovedError, RedisError, ResponseError

from api.errors import Undecryptable
from api.ports.answer_cache import CachedQuestion
from api.redis_store.encryption import TextCipher
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import now_ms, on_all, replies_of, scanned, script
from api.redis_store.search_index import VECTOR_FIELDS, encoded
from api.redis_store.stores.cache.entries import NOT_COMPARED, WANTED, cached_question
from api.redis_store.stores.cache.semantic_index import SemanticIndex, SemanticIndexes
from api.redis_store.stores.documents.document_records import owner_of
from api.values import EmbedderIdentity, Vector

T = TypeVar("T")
BATCH: Final = 250
"""Entries per script call."""


Found: TypeAlias = tuple[list[T], bool]
"""The entries found, and whether they are complete."""


class RedisInvalidationTags:
    """Finds the cached answers that changed documents affect, and makes them stale.

    Every method raises `StoreUnavailable`.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, indexes: SemanticIndexes) -> None:
        self._redis = redis
        self._texts = redis.texts
        self._keys = keys
        self._indexes = indexes
        self._expire = script(redis.client, "stores/cache/answers", "expire")

    async def near(
        self, embedder: EmbedderIdentity, tenant: str, vectors: Sequence[Vector], floor: float, limit: int
    ) -> tuple[Sequence[CachedQuestion], bool]:
        """Finds fresh entries whose question has a similarity of at least `floor` to one of the vectors.

        Returns them and True; or nothing and False if there may be more than `limit`, or while an index is being built.
        """
        return _all(await on_all(self._near(one, embedder, tenant, vectors, floor, limit) for one in self._indexes))

    async def _near(
        self,
        index: SemanticIndex,
        embedder: EmbedderIdentity,
        tenant: str,
        vectors: Sequence[Vector],
        floor: float,
        limit: int,
    ) -> Found[CachedQuestion]:
        """Searches one partition."""
        name = await index.complete(embedder)
        if name is None:
            return [], False
        fresh = await self._fresh(index.keys, tenant)
        # Most tenants have no entries in most partitions. Entries that are stored from now on are checked then.
        any_of_it = (fresh, "NOCONTENT", "LIMIT", 0, 1, "DIALECT", 2)
        if await self._results(name, ("FT.SEARCH", name, *any_of_it)) == []:
            return [], True
        query = f"({fresh})=>[KNN {limit} @{VECTOR_FIELDS[index.vector_type]} $v AS d]"
        found: dict[str, CachedQuestion] = {}
        for vector in vectors:
            if (asked := encoded(vector, index.vector_type)) is None:
                return [], False
            command = ("FT.SEARCH", name, query, "PARAMS", 2, "v", asked, "SORTBY", "d", "LIMIT", 0, limit)
            results = await self._results(name, (*command, "DIALECT", 2, "RETURN", len(WANTED) + 1, "d", *WANTED))
            if results is None:
                return [], False
            # One that was deleted meanwhile has no distance. It counts, as it has taken another's place.
            near = [one for one in results if 1.0 - float(one[b"extra_attributes"].get(b"d", 0.0)) >= floor]
            if len(near) >= limit:
                return [], False
            try:
                questions = [_question(self._texts, one) for one in near]
            except Undecryptable:
                return [], False  # other workers may have its key and serve it
            found |= {question.entry: question for question in questions if question is not None}
        return list(found.values()), True

    async def incomparable(self, embedder: EmbedderIdentity, tenant: str, limit: int) -> tuple[Sequence[str], bool]:
        """Finds fresh entries without a comparable vector.

        They have none, one of another embedder or type, or are older than the documents.
        Returns them and True; or nothing and False if there may be more than `limit`.
        """
        return _all(await on_all(self._incomparable(one, embedder, tenant, limit) for one in self._indexes))

    async def _incomparable(
        self, index: SemanticIndex, embedder: EmbedderIdentity, tenant: str, limit: int
    ) -> Found[str]:
        """Searches one partition."""
        own = await index.complete(embedder)
        entries: list[str] = []
        fresh = await self._fresh(index.keys, tenant)
        for name in await self._names(index.keys):
            is_own = name.startswith(index.keys.indexes + embedder.fingerprint)
            if is_own and name != own:
                continue  # another index over the same entries
            query = f"{fresh} {NOT_COMPARED[index.vector_type]}" if is_own else fresh
            asked = ("FT.SEARCH", name, query, "NOCONTENT", "LIMIT", 0, limit, "DIALECT", 2)
            results = await self._results(name, asked)
            if results is None or len(results) >= limit:
                return [], False
            entries += [one[b"id"].decode() for one in results]
        return entries, own is not None

    async def expire(self, entries: Sequence[str]) -> int:
        """Makes the entries stale now: they are served only if Ollama fails. Returns how many were fresh."""
        parts = [(part, [entry for entry in entries if part.holds(entry)]) for part in self._keys.partitions]
        return sum(await on_all(self._expire_of(part, of_part) for part, of_part in parts if of_part))

    async def _expire_of(self, part: CacheKeys, entries: Sequence[str]) -> int:
        redis, ended = self._redis.of(part.invalidated), 0
        for start in range(0, len(entries), BATCH):
            keys = list(entries[start : start + BATCH])
            ended += int(await redis.run("expire", lambda client, keys=keys: self._expire(keys, [], client)))  # type: ignore[misc]
        return ended

    async def expire_all(self, tenant: str) -> int:
        """Makes all entries stale that depend on the tenant's documents. Returns how many were fresh.

        It scans the keys and needs no index.
        """
        owner = owner_of(tenant).encode()
        return sum(await on_all(self._expire_all(part, owner) for part in self._keys.partitions))

    async def _expire_all(self, part: CacheKeys, owner: bytes) -> int:
        redis, ended = self._redis.of(part.invalidated), 0
        async for found in scanned(redis, "expire", part.invalidated, f"{part.entries}*"):
            keys = [key for key in found if part.holds(key)]
            owners = await redis.run("expire", lambda client, keys=keys: _owners(client, keys))  # type: ignore[misc]
            ended += await self._expire_of(part, [key for key, of in zip(keys, owners, strict=True) if of == owner])
        return ended

    async def _fresh(self, part: CacheKeys, tenant: str) -> str:
        """The part of a query that selects a tenant's fresh entries."""
        at_ms = await self._redis.of(part.invalidated).run("expire", now_ms)
        return f"@owner:{{{owner_of(tenant)}}} @expires_ms:[({at_ms} +inf]"

    async def _names(self, part: CacheKeys) -> list[str]:
        redis = self._redis.of(part.invalidated)
        listed: Any = await redis.run("expire", lambda client: client.execute_command("FT._LIST"))
        names = [name.decode("utf-8", "replace") for name in listed]
        return [name for name in names if name.startswith(part.indexes)]

    async def _results(self, index: str, command: tuple[Any, ...]) -> list[Any] | None:
        """None if the index is missing or of another form, or if Redis ended the search early."""

        async def ask(client: Redis) -> Any:
            try:
                return await client.execute_command(*command)  # type: ignore[no-untyped-call]
            except MovedError:
                raise
            except ResponseError:
                return None

        reply = await self._redis.of(index).run("expire", ask)
        return None if reply is None or reply.get(b"warning") else list(reply[b"results"])


def _all(found: Sequence[Found[T]]) -> tuple[Sequence[T], bool]:
    """Joins the results of all partitions; nothing if one of them is incomplete."""
    if not all(complete for _, complete in found):
        return (), False
    return [one for of_one, _ in found for one in of_one], True


def _question(texts: TextCipher, found: Any) -> CachedQuestion | None:
    fields = {name.decode(): value for name, value in found[b"extra_attributes"].items()}
    with suppress(KeyError, ValueError):
        return cached_question(texts, found[b"id"].decode(), fields)
    return None


async def _owners(client: Redis, keys: Sequence[str]) -> list[Any]:
    if not keys:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(key, "owner")
        replies = await replies_of(pipe)
    return [None if isinstance(reply, RedisError) else reply for reply in replies]
