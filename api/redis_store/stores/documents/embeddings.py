"""Tracks the embedders of documents: documents yet to embed, chunks of unused embedders, and the last known embedder.

Removal goes in a safe order. First the fleet forgets that the embedder had embedded everything, then for each document
that it had embedded it. If the embedder is used again midway, it embeds what is missing. Its index is dropped last, so
that an interrupted removal is found again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.errors import StoreUnavailable
from api.ports.document_work import Epoch, Work
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.schema import Schema, oldest
from api.redis_store.scripts import scanned, script
from api.redis_store.stores.documents.document_records import Fields, facts_of, named, owner_of, stemmer_of
from api.values import EmbedderIdentity


class RedisReembedding:
    """Documents that a new embedder has yet to embed. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._keys = keys
        self._worker = worker
        self._embedded = script(redis.client, "stores/documents/embeddings", "embedded")
        self._complete = script(redis.client, "stores/documents/embeddings", "complete")

    async def behind(self, embedder: EmbedderIdentity) -> Epoch | None:
        """Returns the epoch that the embedder has yet to complete; None if it has embedded all documents."""
        names, key = ("epoch", f"done:{embedder.fingerprint}", "began_ms"), self._keys.corpus_state
        found: list[Any] = await self._redis.run("corpus", lambda client: client.hmget(key, *names))
        epoch, done, began = found
        return Epoch(int(epoch), (began or b"").decode()) if int(epoch or 0) > int(done or 0) else None

    async def missing(self, embedder: EmbedderIdentity) -> AsyncIterator[Work]:
        """Yields the documents to embed.

        Documents that change meanwhile are embedded by the worker that writes them.
        """
        prefix = self._keys.document("")
        async for keys in scanned(self._redis, "corpus", self._keys.corpus_state, f"{prefix}*"):
            for document in [key.removeprefix(prefix) for key in keys]:
                fields = await self._fields(document) if ":" not in document else {}
                if _lacks(fields, embedder.fingerprint):
                    yield Work(document, int(fields["revision"]), "store", facts_of(fields))

    async def embedded(self, work: Work, embedder: EmbedderIdentity) -> bool:
        """Notes that the embedder has embedded a document.

        Returns False if the revision is not current, or another worker has the lease.
        """
        corpus = self._keys.corpus(owner_of(work.facts.tenant))
        keys = [self._keys.document(work.id), self._keys.embedding_lease(embedder.fingerprint), corpus]
        language = work.facts.language
        about = [stemmer_of(language), language or ""]
        arguments: list[Any] = [work.revision, embedder.fingerprint, self._worker, *about]
        return bool(await self._redis.run("corpus", lambda client: self._embedded(keys, arguments, client)))

    async def complete(self, embedder: EmbedderIdentity, epoch: Epoch) -> None:
        """Notes that the embedder has embedded all documents of an epoch. `behind` reports later changes."""
        keys = [self._keys.corpus_state]
        arguments: list[Any] = [embedder.fingerprint, epoch.number, epoch.began]
        await self._redis.run("corpus", lambda client: self._complete(keys, arguments, client))

    async def _fields(self, document: str) -> Fields:
        async def read(client: Redis) -> Any:
            return await client.hgetall(self._keys.document(document))

        return named(await self._redis.run("corpus", read))


def _lacks(fields: Fields, embedder: str) -> bool:
    revision = fields.get("revision", b"0")
    return int(revision) > 0 and fields.get(f"embedded:{embedder}") != revision


WITH_PASSAGE_INDEX: Final = Schema(1, 1)
"""From this schema on, workers use `Keys.passage_index`."""
REMOVED: Final = 200
"""Chunks per delete; each is removed from the vector index too."""


class RedisUnusedEmbeddings:
    """Embedders of documents by their last use. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._fleet = redis.of(keys.workers)
        self._keys = keys
        self._used = script(redis.client, "stores/documents/embeddings", "used")
        self._unused = script(redis.client, "stores/documents/embeddings", "unused")
        self._forget = script(redis.client, "stores/documents/embeddings", "forget")

    async def use(self, embedder: EmbedderIdentity) -> None:
        """Notes that this worker uses the embedder now."""
        keys = [self._keys.corpus_embedders]
        await self._redis.run("embedders", lambda client: self._used(keys, [embedder.fingerprint], client))

    async def unused(self, keep: float) -> Sequence[str]:
        """Returns the fingerprints of embedders that no worker has used for `keep` seconds."""
        listed: Any = await self._redis.run("embedders", lambda client: client.execute_command("FT._LIST"))
        arguments: list[str | int] = [_ms(keep), *self._indexed(listed, *self._prefixes)]
        keys = [self._keys.corpus_embedders]
        found: Any = await self._redis.run("embedders", lambda client: self._unused(keys, arguments, client))
        return [name.decode() for name in found]

    async def drop_earlier(self) -> Sequence[str]:
        """Drops indexes of workers before schema 1.1, and returns their names.

        Only once none of those workers is left, and the index that replaces one is complete.
        """
        if await self._fleet.run("embedders", lambda client: oldest(client, self._keys)) < WITH_PASSAGE_INDEX:
            return []

        async def drop(client: Redis) -> list[str]:
            listed: Any = await client.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
            both = self._indexed(listed, self._prefixes[0]) & self._indexed(listed, self._prefixes[1])
            dropped = []
            for embedder in sorted(both):
                info: Any = await client.execute_command("FT.INFO", self._keys.passage_index(embedder))  # type: ignore[no-untyped-call]
                if not int(info[b"indexing"]):
                    dropped.append(self._keys.chunk_index(embedder))
                    await client.execute_command("FT.DROPINDEX", dropped[-1])  # type: ignore[no-untyped-call]
            return dropped

        return await self._redis.run("embedders", drop)

    @property
    def _prefixes(self) -> tuple[str, str]:
        return self._keys.passage_indexes, self._keys.chunk_indexes

    @staticmethod
    def _indexed(listed: Sequence[bytes], *prefixes: str) -> set[str]:
        """The embedders with an index whose name begins so."""
        names = [name.decode("utf-8", "replace") for name in listed]
        return {name.removeprefix(prefix) for prefix in prefixes for name in names if name.startswith(prefix)}

    async def remove(self, embedder: str, keep: float) -> AsyncIterator[int]:
        """Deletes an embedder's chunks by document, and yields how many. Stops if it is used again."""
        state = self._keys.corpus_state
        if not await self._forgotten(embedder, keep, [state, state], f"done:{embedder}"):
            return
        async for document, sets in self._documents():
            for field, count in sets.items():
                of, _, revision = field.partition(":")
                if of == embedder:
                    if not await self._remove(embedder, keep, document, int(revision), count):
                        return
                    yield count
        await self._drop(embedder, keep)

    async def _documents(self) -> AsyncIterator[tuple[str, dict[str, int]]]:
        """Yields each document with the sets of chunks that exist of it. A document may come twice."""
        pattern = self._keys.document_chunks("*")
        before, _, after = pattern.partition("*")
        async for found in scanned(self._redis, "embedders", self._keys.corpus_state, pattern):
            for key in found:
                sets = named(await self._redis.run("embedders", lambda client, key=key: client.hgetall(key)))  # type: ignore[misc]
                yield key.removeprefix(before).removesuffix(after), {name: int(count) for name, count in sets.items()}

    async def _remove(self, embedder: str, keep: float, document: str, revision: int, count: int) -> bool:
        for start in range(0, max(count, 1), REMOVED):
            numbers = range(start, min(start + REMOVED, count))
            chunks = [self._keys.chunk(embedder, document, revision, number) for number in numbers]
            keys = [self._keys.document(document), self._keys.document_chunks(document), *chunks]
            last = f"{embedder}:{revision}" if start + REMOVED >= count else ""
            if not await self._forgotten(embedder, keep, keys, f"embedded:{embedder}", last):
                return False
        return True

    async def _forgotten(self, embedder: str, keep: float, keys: Sequence[str], field: str, further: str = "") -> bool:
        names = [self._keys.corpus_embedders, *keys]
        arguments: list[str | int] = [embedder, _ms(keep), field, further]
        return bool(await self._redis.run("embedders", lambda client: self._forget(names, arguments, client)))

    async def _drop(self, embedder: str, keep: float) -> None:
        """Drops the index. An embedder that is used again right now recreates it; an index holds no data."""
        if embedder not in await self.unused(keep):
            return

        async def drop(client: Redis) -> None:
            for index in (self._keys.passage_index(embedder), self._keys.chunk_index(embedder)):
                with suppress(ResponseError):  # gone with FLUSHALL
                    await client.execute_command("FT.DROPINDEX", index)  # type: ignore[no-untyped-call]
            await client.zrem(self._keys.corpus_embedders, embedder)

        await self._redis.run("embedders", drop)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


LIFETIME_MS: Final = 30 * 24 * 3600 * 1000


class EmbedderRegistry:
    """The last known identity of an embedding model, for a worker that starts while Ollama is down.

    While Redis is down, nothing is known and nothing is stored.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, model: str) -> None:
        self._key = keys.embedder(model)
        self._redis = redis.of(self._key)

    async def recall(self) -> EmbedderIdentity | None:
        """Returns the last identity, if any."""
        try:
            fields: dict[Any, Any] = await self._redis.run("recall_embedder", lambda client: client.hgetall(self._key))
        except StoreUnavailable:
            return None
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if not {"name", "dimension", "fingerprint"} <= text.keys():
            return None
        return EmbedderIdentity(text["name"], int(text["dimension"]), text["fingerprint"])

    async def remember(self, identity: EmbedderIdentity) -> None:
        """Stores the identity."""

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hset(self._key, mapping=asdict(identity))
                pipe.pexpire(self._key, LIFETIME_MS)
                await pipe.execute()

        with suppress(StoreUnavailable):
            await self._redis.run("remember_embedder", write)
