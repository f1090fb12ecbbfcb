"""The vector indexes over cached answers: one per partition and embedder, created when first needed.

An index covers the hashes themselves, so every worker finds an entry as soon as it is stored. While Redis builds an
index, the one of the other kind serves if it exists. Otherwise the semantic tier finds nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.ports.inference import Embedder
from api.redis_store.health_gated import HealthGated, HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.search_index import (
    ALGORITHMS,
    EF_LOOKUP,
    NEIGHBOURS,
    VECTOR_FIELDS,
    Algorithm,
    VectorType,
    created,
    encoded,
    existing,
    hybrid_policy,
    index_schema,
    load_redisvl,
    other_than,
    says_missing,
    vector_type_of,
)
from api.values import EmbedderIdentity, Vector

if TYPE_CHECKING:
    from redisvl.index import AsyncSearchIndex

SECONDS: Final = 10.0
"""Seconds that a count is used. A scope's share of its index changes more slowly."""
SCOPES: Final = 1_000
"""Most scopes to remember. The least recently counted one is dropped."""


@dataclass(frozen=True, slots=True)
class _Counted:
    entries: int
    until: float


class ScopeShares:
    """Each scope's share of an index, as this worker last counted. It decides how to search a graph.

    Pure: the caller counts during a search if a scope `is_due`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Counted] = OrderedDict()

    def is_due(self, scope: str) -> bool:
        """Returns whether to count the scope with this search."""
        known = self._known.get(scope)
        return known is None or self._clock() >= known.until

    def note(self, scope: str, entries: int) -> None:
        """Stores the count of a scope."""
        self._known[scope] = _Counted(entries, self._clock() + SECONDS)
        self._known.move_to_end(scope)
        if len(self._known) > SCOPES:
            self._known.popitem(last=False)

    def of(self, scope: str, entries: int) -> float | None:
        """The scope's share of an index with this many `entries`; None if unknown."""
        known = self._known.get(scope)
        return known.entries / entries if known is not None and entries else None


FIELDS: Final = (
    "question",
    "answer",
    "model",
    "sources",
    "prompt_tokens",
    "completion_tokens",
    "created_ms",
    "expires_ms",
    "unread",
    "group",
)


@dataclass(frozen=True, slots=True)
class Nearest:
    """An entry near a question: its key, its `FIELDS` in order (None if missing), and the cosine similarity."""

    key: str
    values: tuple[bytes | None, ...]
    similarity: float


class Neighbor(NamedTuple):
    """An entry near another one: its key, the cosine similarity, and its answer group, which may be itself."""

    key: str
    similarity: float
    group: str


class SemanticIndex:
    """Finds the nearest entries of a scope in one partition, of those whose vectors have this type.

    Raises `StoreUnavailable` while Redis is down or has no search module.
    """

    def __init__(
        self,
        redis: HealthGated,
        keys: CacheKeys,
        algorithm: Algorithm = "flat",
        vector_type: VectorType = "float32",
    ) -> None:
        self._redis = redis
        self._algorithm: Algorithm = algorithm
        self.vector_type: VectorType = vector_type
        self.supported = True
        self.keys = keys
        self._serving: dict[str, Algorithm | None] = {}
        self._asked: dict[str, float] = {}
        self._latest = ""
        self._names: dict[tuple[str, Algorithm], str] = {}
        self._entries: dict[str, int] = {}
        self._shares = ScopeShares()
        self._known: dict[str, EmbedderIdentity] = {}
        redis.on_recovery(self._ensure_all)

    async def ensure(self, embedder: EmbedderIdentity) -> None:
        """Creates the index of `embedder` if it is missing, and finds which one serves. Workers may do so at once."""
        self._note(embedder)
        await self._redis.run("index_create", lambda client: self._ensure(client, embedder))

    async def maintain(self) -> None:
        """Calls `ensure` for all known embedders: recreates lost indexes, and switches to completed ones."""
        for embedder in list(self._known.values()) if self.supported else ():
            await self._redis.run("index_create", lambda client, of=embedder: self._ensure(client, of))  # type: ignore[misc]

    def in_use(self) -> list[str]:
        """The names of the indexes that this worker searches or waits for."""
        kinds = ((name, kind) for name, serving in self._serving.items() for kind in {self._algorithm, serving})
        return [self._named(name, kind) for name, kind in kinds if kind is not None]

    def forget_unused(self, seconds: float) -> None:
        """Forgets embedders without a search in this many seconds, except the latest."""
        now = time.monotonic()
        for name in [name for name, asked in self._asked.items() if now - asked >= seconds and name != self._latest]:
            for known in (self._asked, self._known, self._serving):
                known.pop(name, None)
            for algorithm in ALGORITHMS:
                self._names.pop((name, algorithm), None)
                self._entries.pop(self._named(name, algorithm), None)

    def _note(self, embedder: EmbedderIdentity) -> None:
        self._known[embedder.fingerprint] = embedder
        self._asked[embedder.fingerprint] = time.monotonic()
        self._latest = embedder.fingerprint

    @property
    def is_building(self) -> bool:
        """True if Redis was still building an index at the last check."""
        return any(serving != self._algorithm for serving in self._serving.values())

    async def nearest(
        self,
        embedder: EmbedderIdentity,
        scope: str,
        vector: Vector,
        expires_after_ms: int,
        neighbours: int = NEIGHBOURS,
    ) -> list[Nearest]:
        """Returns the nearest entries that expire after `expires_after_ms`, nearest first."""
        self._note(embedder)
        serving, asked = await self._serves(embedder), encoded(vector, self.vector_type)
        if serving is None or asked is None:
            return []
        index, search = self._command(serving, embedder, scope, asked, expires_after_ms, neighbours)
        try:
            if serving == "hnsw" and self._shares.is_due(scope):
                found = await self._counted(index, scope, search)
            else:
                found = await self._redis.run("semantic_lookup", methodcaller("execute_command", *search))
        except StoreUnavailable:
            if not self._redis.is_up:
                raise
            await self.ensure(embedder)  # FLUSHALL takes an index too: made again, and this once a miss
            return []
        return nearest_of(found)

    def search(
        self, embedder: EmbedderIdentity, scope: str, vector: Vector, expires_after_ms: int, neighbours: int
    ) -> tuple[Any, ...] | None:
        """Returns the command of `nearest`, to be sent along with another one. No I/O.

        None if more is due: the index must be found or created, or the scope counted.
        """
        serving = self._serving.get(embedder.fingerprint)
        if serving is None or (serving == "hnsw" and self._shares.is_due(scope)):
            return None
        if (asked := encoded(vector, self.vector_type)) is None:
            return None
        self._note(embedder)
        return self._command(serving, embedder, scope, asked, expires_after_ms, neighbours)[1]

    def _command(
        self,
        serving: Algorithm,
        embedder: EmbedderIdentity,
        scope: str,
        asked: bytes,
        expires_after_ms: int,
        neighbours: int,
    ) -> tuple[str, tuple[Any, ...]]:
        index = self._names.get((embedder.fingerprint, serving)) or self._name(embedder, serving)
        share = self._shares.of(scope, self._entries.get(index, 0))
        clause = nearest_clause(serving, share, neighbours, self.vector_type)
        return index, _search(index, scope, expires_after_ms, clause, asked, neighbours)

    async def near(self, scope: str, vector: Vector, limit: int, listed: Collection[str] = ()) -> list[Neighbor]:
        """Returns up to `limit` entries of the scope, fresh or not, nearest first.

        `listed`: the names of existing indexes. Those of the other vector type are searched too. Without entries of
        this type while this worker has no index for the scope's embedder.
        """
        fingerprint = scope.partition("-")[0]
        serving, same_embedder = self._serving.get(fingerprint), f"{self.keys.indexes}{fingerprint}-"
        names = [one for one in listed if one.startswith(same_embedder) and vector_type_of(one) != self.vector_type]
        if serving is not None:
            names.append(self._named(fingerprint, serving))
        searches = [search for name in names if (search := _near_search(name, scope, vector, limit)) is not None]
        replies = await self._redis.run("feedback", lambda client: _execute(client, searches)) if searches else []
        found = {one.key: one for reply in replies for one in map(_neighbor, existing(reply))}
        return sorted(found.values(), key=attrgetter("similarity"), reverse=True)[:limit]

    async def _counted(self, index: str, scope: str, search: tuple[Any, ...]) -> Any:
        """Searches in the same way, and counts the entries of the scope."""
        count = ("FT.SEARCH", index, _in_scope(scope), "LIMIT", 0, 0, "DIALECT", 2)
        found, counted = await self._redis.run("semantic_lookup", lambda client: _execute(client, [search, count]))
        self._shares.note(scope, int(counted[b"total_results"]))
        return found

    def _name(self, embedder: EmbedderIdentity, serving: Algorithm) -> str:
        name = self._names[embedder.fingerprint, serving] = self._named(embedder.fingerprint, serving)
        return name

    def _named(self, fingerprint: str, algorithm: Algorithm) -> str:
        return self.keys.index(fingerprint, algorithm, self.vector_type)

    async def complete(self, embedder: EmbedderIdentity) -> str | None:
        """The name of the index that covers all entries of `embedder`; None while Redis builds it."""
        serving = await self._serves(embedder) if self.supported else None
        return self._named(embedder.fingerprint, serving) if serving is not None else None

    async def count(self, embedder: EmbedderIdentity, now_ms: int) -> int:
        """Returns how many entries have not expired."""
        serving = await self._serves(embedder) or self._algorithm
        index, lasting = self._named(embedder.fingerprint, serving), f"@expires_ms:[({now_ms} +inf]"
        count = methodcaller("execute_command", "FT.SEARCH", index, lasting, "LIMIT", 0, 0, "DIALECT", 2)
        return int((await self._redis.run("index_count", count))[b"total_results"])

    async def _ensure_all(self) -> None:
        await self._find_module()
        for embedder in list(self._known.values()) if self.supported else ():
            try:
                await self._ensure(self._redis.client, embedder)
            except ResponseError:
                self._serving.pop(embedder.fingerprint, None)  # created at the next look-up

    async def _serves(self, embedder: EmbedderIdentity) -> Algorithm | None:
        if embedder.fingerprint not in self._serving:
            await self.ensure(embedder)
        return self._serving.get(embedder.fingerprint)

    async def _ensure(self, client: Redis, embedder: EmbedderIdentity) -> None:
        built = await self._is_built(client, embedder, self._algorithm)
        if built is None:
            await load_redisvl()
            await created(self._index(client, embedder, self._algorithm).create(overwrite=False))
            built = await self._is_built(client, embedder, self._algorithm)
        serving: Algorithm | None = self._algorithm
        if not built:
            before = other_than(self._algorithm)
            serving = before if await self._is_built(client, embedder, before) else None
        self._serving[embedder.fingerprint] = serving

    async def _is_built(self, client: Redis, embedder: EmbedderIdentity, algorithm: Algorithm) -> bool | None:
        """None if the index does not exist."""
        index = self._named(embedder.fingerprint, algorithm)
        try:
            (info,) = await _execute(client, [("FT.INFO", index)])
        except ResponseError as error:
            if says_missing(error):
                return None
            raise
        self._entries[index] = int(info[b"num_docs"])
        return not int(info[b"indexing"])

    async def _find_module(self) -> None:
        try:
            await self._redis.client.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
        except ResponseError as error:
            # Any other error, such as one of an ACL, means that the module exists.
            missing = str(error).lower().startswith("unknown command")
        else:
            missing = False
        self.supported = not missing

    def _index(self, client: Redis, embedder: EmbedderIdentity, algorithm: Algorithm) -> AsyncSearchIndex:
        from redisvl.index import AsyncSearchIndex

        schema = index_schema(self.keys, embedder, algorithm, self.vector_type)
        return AsyncSearchIndex.from_dict(schema, redis_client=client)


def nearest_clause(
    algorithm: Algorithm,
    share: float | None = None,
    neighbours: int = NEIGHBOURS,
    vector_type: VectorType = "float32",
) -> str:
    """The part of a query that finds the nearest entries. `share`: the scope's share of the index, if known."""
    nearest = f"KNN {neighbours} @{VECTOR_FIELDS[vector_type]} $v"
    if algorithm == "flat":
        return f"[{nearest} AS d]"
    return f"[{nearest} EF_RUNTIME {EF_LOOKUP}{hybrid_policy(share)} AS d]"


async def _execute(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Runs the commands in one round trip."""
    if len(commands) == 1:  # the usual case, without the cost of a pipeline
        return [await client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute())


def _search(
    index: str, scope: str, expires_after_ms: int, nearest: str, vector: Vector, neighbours: int
) -> tuple[Any, ...]:
    """Builds the command by hand: building it with redisvl takes longer than the rest of a semantic hit."""
    return (
        *("FT.SEARCH", index, f"({_in_scope(scope)} @expires_ms:[({expires_after_ms} +inf])=>{nearest}"),
        *("PARAMS", 2, "v", vector, "SORTBY", "d", "LIMIT", 0, neighbours, "DIALECT", 2),
        *("RETURN", len(FIELDS) + 1, "d", *FIELDS),
    )


def _near_search(index: str, scope: str, vector: Vector, limit: int) -> tuple[Any, ...] | None:
    """The command that finds the entries nearest to a vector, or None if the index cannot have such a vector."""
    vector_type = vector_type_of(index)
    if (asked := encoded(vector, vector_type)) is None:
        return None
    query = f"({_in_scope(scope)})=>[KNN {limit} @{VECTOR_FIELDS[vector_type]} $v AS d]"
    search = ("FT.SEARCH", index, query, "PARAMS", 2, "v", asked, "SORTBY", "d", "LIMIT", 0, limit)
    return (*search, "DIALECT", 2, "RETURN", 2, "d", "group")


def _in_scope(scope: str) -> str:
    """Escapes the hyphen; a scope otherwise consists of hex digits."""
    return "@scope:{" + scope.replace("-", "\\-") + "}"


def _neighbor(found: Mapping[bytes, Any]) -> Neighbor:
    key, fields = found[b"id"].decode(), found[b"extra_attributes"]
    return Neighbor(key, min(1.0, 1.0 - float(fields[b"d"])), (fields.get(b"group") or found[b"id"]).decode())


def nearest_of(reply: Mapping[bytes, Any]) -> list[Nearest]:
    """Parses the reply to the command of `SemanticIndex.search`."""
    return [_nearest(one) for one in existing(reply)]


def _nearest(found: Mapping[bytes, Any]) -> Nearest:
    fields = found[b"extra_attributes"]
    values = tuple(fields.get(name) for name in _FIELDS)
    # Among 16-bit floats, Redis's distance of equal vectors may be a little below 0.
    return Nearest(found[b"id"].decode(), values, min(1.0, 1.0 - float(fields[b"d"])))


_FIELDS: Final = tuple(name.encode() for name in FIELDS)


class SemanticIndexes:
    """The indexes of all partitions. Created without I/O; each index is created with the first answer of its shard."""

    def __init__(
        self,
        redis: HealthGatedClients,
        keys: Keys,
        algorithm: Algorithm = "flat",
        vector_type: VectorType = "float32",
    ) -> None:
        self._keys = keys
        self.vector_type: VectorType = vector_type
        self.by_partition = {
            part: SemanticIndex(redis.of(part.invalidated), part, algorithm, vector_type) for part in keys.partitions
        }

    def __iter__(self) -> Iterator[SemanticIndex]:
        return iter(self.by_partition.values())

    def __len__(self) -> int:
        return len(self.by_partition)

    def of(self, scope: str) -> SemanticIndex:
        """The index for the entries of a scope."""
        return self.by_partition[self._keys.partition(scope)]

    async def prepare(self, embedder: Embedder) -> None:
        """Creates the indexes on shards that are up, if the embedder is known. Otherwise the first look-up does."""
        with suppress(EmbeddingUnavailable):
            identity = await embedder.identity()
            for index in self:  # one at a time: together they would need a connection each, at the busiest moment
                await _ensured(index, identity)


async def _ensured(index: SemanticIndex, identity: EmbedderIdentity) -> None:
    with suppress(StoreUnavailable):
        await index.ensure(identity)
