"""Reads the documents and answers for a backup while the fleet works: scans the keys in bounded batches.

A document is read at one revision, with its text and chunks. An answer is read with its absolute times and the digests
of the documents that it cites.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.ports.backup_storage import StoredAnswer, StoredDocument
from api.ports.document_work import EmbeddedChunk
from api.redis_store.encryption import TextCipher
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import milliseconds, now_ms, on_all, replies_of, scanned_once
from api.redis_store.stores.cache.entries import decrypted_fields, without_type
from api.redis_store.stores.cache.sweep import EntryKey
from api.redis_store.stores.documents.document_records import (
    DocumentDigests,
    Fields,
    chunk_of,
    decrypted_download,
    document_of,
    named,
    range_of,
    vector_of,
)

ANSWERS_READ: Final = 100
"""Entries per read."""
NEEDED: Final = ("scope", "tenant", "question", "answer", "model", "sources", "created_ms", "expires_ms")


class AnswerReader:
    """Reads cached answers. Raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._digests = DocumentDigests(redis, keys)

    async def all(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]:
        """Yields each cached answer whose cited documents are still in service."""
        for part in self._keys.partitions:
            async for parsed in self._found(part):
                for start in range(0, len(parsed), ANSWERS_READ):
                    read = await self._read(part, parsed[start : start + ANSWERS_READ])
                    wanted = [answer for answer in read if not tenants or answer.tenant in tenants]
                    for answer in await self._cited(wanted):
                        yield answer

    async def _found(self, part: CacheKeys) -> AsyncIterator[list[EntryKey]]:
        redis = self._redis.of(part.invalidated)
        async for found in scanned_once(redis, "backup", part.invalidated, f"{part.entries}*"):
            parsed = [EntryKey.parsed(part, key) for key in found if part.holds(key)]
            yield [entry for entry in parsed if entry is not None]

    async def _read(self, part: CacheKeys, entries: Sequence[EntryKey]) -> list[StoredAnswer]:
        async def ask(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.time()
                for entry in entries:
                    pipe.hgetall(entry.key)
                    pipe.pttl(entry.key)
                    pipe.hget(part.eviction_keys[2], entry.key)
                return await replies_of(pipe)

        time, *replies = await self._redis.of(part.invalidated).run("backup", ask)
        now_ms = milliseconds(time)
        threes = zip(entries, replies[::3], replies[1::3], replies[2::3], strict=True)
        found = [
            _answer(self._redis.texts, entry, fields, now_ms + left, uses)
            for entry, fields, left, uses in threes
            if left > 0
        ]
        return [answer for answer in found if answer is not None]

    async def _cited(self, answers: Sequence[StoredAnswer]) -> list[StoredAnswer]:
        """Keeps answers whose cited revisions are current, and adds the documents' digests."""
        cited = [_revisions(answer.fields["sources"]) for answer in answers]
        serving = await self._digests.serving(sorted({document for one in cited for document in one}))
        found = []
        for answer, revisions in zip(answers, cited, strict=True):
            if all(serving.get(document, (0, ""))[0] == at for document, at in revisions.items()):
                digests = {document: serving[document][1] for document in revisions}
                found.append(
                    StoredAnswer(
                        answer.scope, answer.digest, answer.fields, answer.vector, answer.gone_ms, answer.uses, digests
                    )
                )
        return found


def _answer(texts: TextCipher, entry: EntryKey, reply: Any, gone_ms: int, uses: bytes | None) -> StoredAnswer | None:
    """None if the entry is gone or cannot be read. Raises `Undecryptable`."""
    if isinstance(reply, ResponseError):
        return None
    raw = decrypted_fields(texts, entry.key, named(reply))
    vector = without_type(raw)
    try:
        fields = {name: value.decode() for name, value in raw.items()}
        _revisions(fields["sources"])
    except (ValueError, KeyError, TypeError):
        return None
    if any(name not in fields for name in NEEDED):
        return None
    return StoredAnswer(entry.scope, entry.digest, fields, vector, gone_ms, int(uses or 0), {})


def _revisions(sources: str) -> Mapping[str, int]:
    """The documents that an answer cites, with their revisions."""
    return {str(source["document_id"]): int(source.get("revision", 0)) for source in orjson.loads(sources)}


DOCUMENTS_READ: Final = 100
"""Chunks per read."""
TRIES: Final = 5
"""Attempts to read a document that changes meanwhile. After that it is left out."""


class DocumentReader:
    """Reads documents. Raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._texts = redis.texts
        self._keys = keys

    async def all(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]:
        """Yields each document in service, complete and of one revision."""
        prefix = self._keys.document("")
        async for found in scanned_once(self._redis, "backup", self._keys.corpus_state, self._keys.document("*")):
            for document in (key.removeprefix(prefix) for key in found):
                if ":" not in document:
                    stored = await self._stored(document, tenants, vectors)
                    if stored is not None:
                        yield stored

    async def _stored(self, document: str, tenants: Collection[str], vectors: bool) -> StoredDocument | None:
        """None if the document has no current revision, is not wanted, or keeps changing."""
        for _ in range(TRIES):
            fields = await self._fields(document)
            revision = int(fields.get("revision") or 0)
            if revision == 0 or (tenants and fields["tenant"].decode() not in tenants):
                return None
            content = await decrypted_download(
                self._redis, self._keys, self._texts, document, self._keys.document_text(document)
            )
            sets = await self._sets(document, fields) if vectors else {}
            if content is not None and int((await self._fields(document)).get("revision") or 0) == revision:
                return StoredDocument(document_of(document, fields, {}), content.decode("utf-8", "replace"), sets)
        return None

    async def _fields(self, document: str) -> Fields:
        key = self._keys.document(document)
        return named(await self._redis.run("backup", lambda client: client.hgetall(key)))

    async def _sets(self, document: str, fields: Fields) -> Mapping[str, Sequence[EmbeddedChunk]]:
        """The chunks of each embedder that has embedded the current revision. Incomplete sets are left out."""
        revision, total = fields["revision"], int(fields.get("chunks") or 0)
        embedders = [name[9:] for name, at in fields.items() if name.startswith("embedded:") and at == revision]
        found = {}
        for embedder in embedders:
            # Another embedder may have split the document differently, so its set has another size.
            count = await self._count(document, f"{embedder}:{int(revision)}") or total
            names = [self._keys.chunk(embedder, document, int(revision), number) for number in range(count)]
            chunks = [
                await self._chunks(names[start : start + DOCUMENTS_READ]) for start in range(0, count, DOCUMENTS_READ)
            ]
            flat = [chunk for part in chunks for chunk in part]
            if all(chunk is not None for chunk in flat):
                found[embedder] = [chunk for chunk in flat if chunk is not None]
        return found

    async def _count(self, document: str, field: str) -> int:
        key = self._keys.document_chunks(document)
        return int(await self._redis.run("backup", lambda client: client.hget(key, field)) or 0)

    async def _chunks(self, names: Sequence[str]) -> list[EmbeddedChunk | None]:
        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(name)
                replies: list[Any] = await pipe.execute()
                return replies

        found = zip(names, await self._redis.run("backup", read), strict=True)
        return [_embedded(self._texts, name, named(fields)) for name, fields in found]


def _embedded(texts: TextCipher, key: str, fields: Fields) -> EmbeddedChunk | None:
    try:
        vector, failure = vector_of(fields), fields.get("failure", b"").decode()
        assert vector is not None or failure
        chunk = chunk_of(fields, texts, key)
        return EmbeddedChunk(chunk, vector, range_of(fields["span"]), range_of(fields["reach"]), failure)
    except (KeyError, ValueError, AssertionError):
        return None


_OWNER: Final = re.compile(r"[0-9a-f]{16}")
"""Distinguishes a tenant's key from others with the same prefix."""


class RedisBackupSource:
    """The fleet's data as a backup reads it. Every method raises `StoreUnavailable`. An empty `tenants` means all."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._clients = redis
        self._redis = redis.of(keys.corpus_state)
        self._keys = keys
        self._documents = DocumentReader(redis, keys)
        self._answers = AnswerReader(redis, keys)
        self._digests = DocumentDigests(redis, keys)

    async def now_ms(self) -> int:
        """Returns Redis's clock (ms)."""
        return await self._redis.run("backup", now_ms)

    async def expected(self) -> tuple[int, int]:
        """Returns the approximate numbers of documents and answers."""
        documents = sum([await self._documents_of(key) for key in await self._owners()])
        return documents, sum(await on_all(self._answers_in(part) for part in self._keys.partitions))

    def documents(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]:
        """Yields each document in service, complete and of one revision."""
        return self._documents.all(tenants, vectors=vectors)

    def answers(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]:
        """Yields each cached answer whose cited documents are still in service."""
        return self._answers.all(tenants)

    async def unsettled(self) -> Mapping[str, int | None]:
        """Returns the epoch of each tenant's documents; None for a tenant with an unfinished change."""
        found: dict[str, int | None] = {}
        for key in await self._owners():
            tenant, epoch = await self._redis.run("backup", lambda client, k=key: client.hmget(k, "tenant", "epoch"))  # type: ignore[misc]
            if tenant is not None:
                found[tenant.decode()] = int(epoch or 0)
        work: Any = await self._redis.run("backup", lambda client: client.zrange(self._keys.corpus_work, 0, -1))
        for document in work:
            key = self._keys.document_work(document.decode())
            (tenant,) = await self._redis.run("backup", lambda client, k=key: client.hmget(k, "tenant"))  # type: ignore[misc]
            if tenant is not None:
                found[tenant.decode()] = None
        return found

    async def corpus(self, tenant: str) -> tuple[int, str]:
        """Returns the epoch of a tenant's documents and a digest of those in service; empty while they change."""
        return await self._digests.corpus(tenant)

    async def _owners(self) -> list[str]:
        """The keys of all tenants' documents."""
        prefix = self._keys.corpus("")
        batches = [found async for found in scanned_once(self._redis, "backup", self._keys.corpus_state, f"{prefix}*")]
        return [key for found in batches for key in found if _OWNER.fullmatch(key.removeprefix(prefix))]

    async def _documents_of(self, key: str) -> int:
        return int(await self._redis.run("backup", lambda client: client.hget(key, "documents")) or 0)

    async def _answers_in(self, part: CacheKeys) -> int:
        redis = self._clients.of(part.invalidated)
        return int(await redis.run("backup", lambda client: client.zcard(part.eviction_keys[1])))
