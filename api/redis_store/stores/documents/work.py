"""Unfinished changes to documents, and the list of what operators have deleted.

A worker takes a change with a lease. The change is void once a newer one replaces it. A restored backup brings back
nothing that is on the list of deletions.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from api.ports.document_store import FailedChunk
from api.ports.document_work import Delayed, EmbeddedChunk, Work, Written
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script
from api.redis_store.stores.documents.document_records import (
    chunk_fields,
    decrypted_download,
    encrypted_upload,
    named,
    owner_of,
    stemmer_of,
    work_of,
)
from api.values import EmbedderIdentity, Vector

REMOVED: Final = 200
"""Chunks per delete; each is removed from the vector index too."""

NAMED: Final = 100
"""Most chunks without an embedding that a document lists."""
_DELAYED: Final[tuple[Delayed, ...]] = ("void", "delayed", "for too long")


class RedisDocumentWork:
    """Unfinished changes to documents, for any worker to take. Every method raises `StoreUnavailable`.

    `reads`: the media types that this worker can read. It leaves other files to other workers.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str, reads: Collection[str]) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._texts = redis.texts
        self._keys = keys
        self._worker = worker
        self._reads = tuple(reads)
        self._take = script(redis.client, "stores/documents/document_records", "take")
        self._renew = script(redis.client, "stores/documents/document_records", "renew")
        self._delay = script(redis.client, "stores/documents/document_records", "delay")
        self._notified = script(redis.client, "stores/documents/document_records", "notified")
        self._settle = script(redis.client, "stores/documents/document_records", "settle")
        self._write = script(redis.client, "stores/documents/document_records", "write")
        self._rewrite = script(redis.client, "stores/documents/embeddings", "rewrite")
        self._commit = script(redis.client, "stores/documents/document_records", "commit")
        self._end = script(redis.client, "stores/documents/document_records", "end")

    async def waiting(self, limit: int, *, gone: bool) -> Sequence[str]:
        """Returns up to `limit` documents with work, oldest first: deleted ones (`gone`) or the others.

        The score of a deletion is its negative time.
        """
        first, last = ("-inf", "(0") if gone else ("0", "inf")
        command = ("ZRANGE", self._keys.corpus_work, first, last, "BYSCORE", "LIMIT", 0, limit)
        found: list[Any] = await self._redis.run(
            "document_work",
            lambda client: client.execute_command(*command),
        )
        return [document.decode() for document in found]

    async def exists(self, document: str) -> bool:
        """Returns whether the document has pending work."""
        key = self._keys.document_work(document)
        return bool(await self._redis.run("document_work", lambda client: client.exists(key)))

    async def take(self, document: str, seconds: float) -> Work | None:
        """Takes the work for `seconds` if no worker has it. Not even this worker gets it twice."""
        keys = [self._keys.document_work(document), self._keys.corpus_work]
        held: list[Any] = [document, self._worker, secrets.token_hex(8), round(seconds * 1000)]
        arguments = [*held, *self._reads]
        fields = named(await self._redis.run("document_work", lambda client: self._take(keys, arguments, client)))
        return work_of(document, fields) if fields else None

    async def renew(self, work: Work, seconds: float) -> bool:
        """Renews the lease. False if the work is void or another worker's."""
        keys = [self._keys.document_work(work.id)]
        arguments: list[Any] = [work.revision, work.holder, round(seconds * 1000)]
        return bool(await self._redis.run("document_work", lambda client: self._renew(keys, arguments, client)))

    async def release(self, work: Work) -> None:
        """Releases the work, to be taken at once."""
        await self.renew(work, 0)

    async def delay(self, work: Work, pause: float, longest: float, reason: str) -> Delayed:
        """Releases the work for another attempt in `pause` seconds.

        Returns `for too long` if it has been delayed for `longest` seconds without progress: this worker then keeps it.
        """
        keys = [self._keys.document_work(work.id)]
        arguments: list[Any] = [work.revision, work.holder, round(pause * 1000), round(longest * 1000), reason]
        verdict = await self._redis.run("document_work", lambda client: self._delay(keys, arguments, client))
        return _DELAYED[int(verdict)]

    async def notified(self, work: Work) -> None:
        """Notes that the cache was invalidated for the pending change."""
        keys = [self._keys.document_work(work.id)]
        arguments: list[Any] = [work.revision, work.holder]
        await self._redis.run("document_work", lambda client: self._notified(keys, arguments, client))

    async def draft(self, work: Work) -> bytes | None:
        """Reads what was uploaded: text or a file."""
        return await self._content(work.id, self._keys.document_draft(work.id))

    async def text(self, document: str) -> bytes | None:
        """Reads the text of the revision in service."""
        return await self._content(document, self._keys.document_text(document))

    async def _content(self, document: str, key: str) -> bytes | None:
        return await decrypted_download(self._redis, self._keys, self._texts, document, key)

    async def settle_text(self, work: Work, text: bytes) -> bool:
        """Replaces the uploaded file by the text, title, tags, warnings and language that were read from it.

        False if the work is void or another worker's.
        """
        content = await encrypted_upload(self._redis, self._keys, self._texts, work.id, text)
        keys = [self._keys.document_work(work.id), self._keys.document_draft(work.id), content]
        facts = work.facts
        read = [facts.title, orjson.dumps(facts.tags), orjson.dumps(facts.warnings)]
        arguments: list[Any] = [work.revision, work.holder, *read, facts.language or ""]
        return bool(await self._redis.run("document_work", lambda client: self._settle(keys, arguments, client)))

    async def written(self, work: Work, embedder: EmbedderIdentity) -> Written:
        """Returns the revision's chunks that an earlier attempt has written."""
        field = f"{embedder.fingerprint}:{work.revision}"
        key = self._keys.document_chunks(work.id)
        total = int(await self._redis.run("document_work", lambda client: client.hget(key, field)) or 0)
        names = self._chunks(work, embedder, range(total))
        found = await self._redis.run("document_work", lambda client: _fields(client, names, "start", "end", "failure"))
        spans = {number: (int(start), int(end)) for number, (start, end, _) in enumerate(found) if start and end}
        failures = {number: failure.decode() for number, (_, _, failure) in enumerate(found) if failure}
        return Written(spans, total, failures)

    async def trim(self, work: Work, embedder: EmbedderIdentity, numbers: Sequence[int]) -> None:
        """Deletes chunks that an earlier attempt wrote and this one does not have."""
        await self._unlink(self._chunks(work, embedder, numbers))

    async def write(
        self,
        work: Work,
        embedder: EmbedderIdentity,
        chunks: Sequence[EmbeddedChunk],
        total: int,
        done: int,
        seconds: float,
    ) -> bool:
        """Writes chunks that are not in service yet, in addition to `done` others, and renews the lease.

        False if the work is void or another worker's.
        """
        names, width, values = self._flat(work, embedder, chunks)
        keys = [self._keys.document_work(work.id), self._keys.document_chunks(work.id), *names]
        held: list[Any] = [work.revision, work.holder, round(seconds * 1000)]
        arguments = [*held, embedder.fingerprint, total, done, width, *values]
        return bool(await self._redis.run("document_write", lambda client: self._write(keys, arguments, client)))

    async def rewrite(
        self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[EmbeddedChunk], total: int
    ) -> bool:
        """Writes chunks of the current revision with another embedder.

        Returns False if the revision is not current, is embedded already, or another worker has the lease.
        """
        names, width, values = self._flat(work, embedder, chunks)
        keys = [
            self._keys.document(work.id),
            self._keys.document_chunks(work.id),
            self._keys.embedding_lease(embedder.fingerprint),
            *names,
        ]
        arguments: list[Any] = [work.revision, self._worker, embedder.fingerprint, total, width, *values]
        return bool(await self._redis.run("document_write", lambda client: self._rewrite(keys, arguments, client)))

    async def commit(
        self, work: Work, embedder: EmbedderIdentity, total: int, characters: int, failed: Sequence[FailedChunk] = ()
    ) -> Work | None:
        """Puts the revision into service in place of the previous one. Returns the remaining work.

        `failed`: chunks that could not be embedded. None if the work is void or another worker's.
        """
        keys = [
            self._keys.document(work.id),
            self._keys.document_text(work.id),
            self._keys.document_draft(work.id),
            self._keys.document_work(work.id),
            self._keys.corpus(owner_of(work.facts.tenant)),
            self._keys.corpus_state,
        ]
        named_ones = orjson.dumps([[one.number, one.reason] for one in failed[:NAMED]])
        held: list[Any] = [work.id, work.revision, work.holder, embedder.fingerprint]
        arguments = [*held, total, characters, len(failed), named_ones, stemmer_of(work.facts.language)]
        done = await self._redis.run("document_commit", lambda client: self._commit(keys, arguments, client))
        return replace(work, phase="tell", replaced=int(done) == 2) if done else None

    async def fail(self, work: Work, error: str) -> None:
        """Ends work that cannot succeed. The previous revision stays in service.

        The work entry is deleted last: after a crash another worker repeats it.
        """
        await self._remove_chunks(work)
        await self._ended(work, error)

    async def finish(self, work: Work) -> None:
        """Ends work that is done, and deletes chunks that are no longer in service.

        The work entry is deleted last, as in `fail`.
        """
        await self._remove_chunks(work)
        await self._ended(work, "")

    async def vectors(self, work: Work, embedder: EmbedderIdentity, offset: int, limit: int) -> Sequence[Vector | None]:
        """Vectors of the revision's chunks in order, None for those not embedded; fewer than `limit` at the end."""
        names = self._chunks(work, embedder, range(offset, offset + limit))
        found = await self._redis.run("document_work", lambda client: _fields(client, names, "number", "vector"))
        return [vector for number, vector in found if number is not None]

    def _flat(
        self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[EmbeddedChunk]
    ) -> tuple[list[str], int, list[Any]]:
        """Chunks for a script: their keys, the number of values per chunk, and all values."""
        names = self._chunks(work, embedder, [one.chunk.number for one in chunks])
        values = [chunk_fields(work, one, self._texts, name) for one, name in zip(chunks, names, strict=True)]
        return names, len(values[0]) if values else 0, [part for fields in values for part in fields]

    def _chunks(self, work: Work, embedder: EmbedderIdentity, numbers: Sequence[int]) -> list[str]:
        return [self._keys.chunk(embedder.fingerprint, work.id, work.revision, number) for number in numbers]

    async def _ended(self, work: Work, error: str) -> None:
        keys = [
            self._keys.document_work(work.id),
            self._keys.corpus_work,
            self._keys.document(work.id),
            self._keys.document_draft(work.id),
        ]
        arguments: list[Any] = [work.id, work.revision, work.holder, error]
        await self._redis.run("document_work", lambda client: self._end(keys, arguments, client))

    async def _remove_chunks(self, work: Work) -> None:
        """Deletes chunks of every embedder of revisions up to this one, except the current revision."""
        key = self._keys.document_chunks(work.id)
        sets = named(await self._redis.run("document_work", lambda client: client.hgetall(key)))
        serving = await self._redis.run(
            "document_work", lambda client: client.hget(self._keys.document(work.id), "revision")
        )
        for name, count in sets.items():
            embedder, _, revision = name.partition(":")
            if int(revision) <= work.revision and int(revision) != int(serving or 0):
                await self._remove(work.id, embedder, int(revision), int(count))

    async def _remove(self, document: str, embedder: str, revision: int, count: int) -> None:
        await self._unlink([self._keys.chunk(embedder, document, revision, number) for number in range(count)])
        field = f"{embedder}:{revision}"
        key = self._keys.document_chunks(document)
        await self._redis.run("document_work", lambda client: client.hdel(key, field))

    async def _unlink(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), REMOVED):
            part = names[start : start + REMOVED]
            await self._redis.run("document_work", lambda client, part=part: client.unlink(*part))  # type: ignore[misc]


async def _fields(client: Redis, keys: Sequence[str], *fields: str) -> list[list[bytes | None]]:
    """Reads these fields of each hash in one round trip."""
    if not keys:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hmget(key, *fields)
        replies: list[list[bytes | None]] = await pipe.execute()
        return replies


LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""Older answers are not restored: whether they were deleted is unknown."""
MOST: Final = 10_000
BATCH: Final = 1000


class RedisDeletions:
    """Deleted tags, kept as long as a backup could restore them. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.cache_deleted)
        self._key = keys.cache_deleted
        self._note = script(redis.client, "stores/documents/document_records", "note_deletions")

    async def note(self, tags: Sequence[str]) -> None:
        """Notes that answers with these tags were deleted now."""
        await self.merge(dict.fromkeys(tags, 0))

    async def noted(self) -> Mapping[str, int]:
        """Returns all tags with their times (ms, Redis's clock)."""
        found: Any = await self._redis.run("deletions", lambda client: client.zrange(self._key, 0, -1, withscores=True))
        return {tag.decode("utf-8", "replace"): int(at) for tag, at in found}

    async def merge(self, tags: Mapping[str, int]) -> None:
        """Adds tags with times (0: now). The later time of a tag wins."""
        pairs = list(tags.items())
        for start in range(0, len(pairs), BATCH):
            flat = [part for pair in pairs[start : start + BATCH] for part in pair]
            arguments: list[str | int] = [LIFETIME_MS, MOST, *flat]
            await self._redis.run("deletions", lambda client, a=arguments: self._note([self._key], a, client))  # type: ignore[misc]
