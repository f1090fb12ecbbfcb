"""Changes of documents that are under way in Redis: taken by a lease, void as soon as a newer one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.model import EmbedderIdentity, Vector
from api.ports.documents import EmbeddedChunk, Work
from api.redis_store.document_fields import chunk_fields, named, owner_of, work_of
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.large_values import downloaded, uploaded
from api.redis_store.scripts import script

REMOVED: Final = 200
"""Chunks removed by one command: each leaves the vector index too."""


class RedisDocumentWork:
    """See `ports.DocumentWork`."""

    def __init__(self, gate: Gates, keys: Keys, worker: str) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._worker = worker
        self._take = script(gate.client, "document_common", "document_take")
        self._settle = script(gate.client, "document_settle")
        self._write = script(gate.client, "document_common", "document_write")
        self._commit = script(gate.client, "document_common", "document_commit")
        self._end = script(gate.client, "document_common", "document_end")

    async def waiting(self, limit: int) -> Sequence[str]:
        """See `ports.DocumentWork`."""
        key = self._keys.corpus_work
        found: list[Any] = await self._gate.run("document_work", lambda client: client.zrange(key, 0, limit - 1))
        return [document.decode() for document in found]

    async def exists(self, document: str) -> bool:
        """See `ports.DocumentWork`."""
        key = self._keys.document_work(document)
        return bool(await self._gate.run("document_work", lambda client: client.exists(key)))

    async def take(self, document: str, seconds: float) -> Work | None:
        """See `ports.DocumentWork`."""
        keys = [self._keys.document_work(document), self._keys.corpus_work]
        arguments: list[Any] = [document, self._worker, round(seconds * 1000)]
        fields = named(await self._gate.run("document_work", lambda client: self._take(keys, arguments, client)))
        return work_of(document, fields) if fields else None

    async def release(self, work: Work) -> None:
        """See `ports.DocumentWork`."""
        await self.take(work.id, 0)

    async def told(self, work: Work) -> None:
        """See `ports.DocumentWork`."""
        key = self._keys.document_work(work.id)
        await self._gate.run("document_work", lambda client: client.hset(key, "owes", "0"))

    async def draft(self, work: Work) -> bytes | None:
        """See `ports.DocumentWork`."""
        return await downloaded(self._gate, self._keys.document_draft(work.id))

    async def text(self, document: str) -> bytes | None:
        """See `ports.DocumentWork`."""
        return await downloaded(self._gate, self._keys.document_text(document))

    async def settle_text(self, work: Work, text: bytes) -> bool:
        """See `ports.DocumentWork`."""
        content = await uploaded(self._gate, self._keys, text)
        keys = [self._keys.document_work(work.id), self._keys.document_draft(work.id), content]
        return bool(await self._gate.run("document_work", lambda client: self._settle(keys, [work.revision], client)))

    async def written(self, work: Work, embedder: EmbedderIdentity) -> frozenset[int]:
        """See `ports.DocumentWork`."""
        field = f"{embedder.fingerprint}:{work.revision}"
        key = self._keys.document_chunks(work.id)
        total = await self._gate.run("document_work", lambda client: client.hget(key, field))
        names = self._chunks(work, embedder, range(int(total or 0)))
        found = await self._gate.run("document_work", lambda client: _exist(client, names))
        return frozenset(number for number, exists in enumerate(found) if exists)

    async def write(
        self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[EmbeddedChunk], total: int, seconds: float
    ) -> bool:
        """See `ports.DocumentWork`. With 0 seconds the revision serves already, and is embedded anew."""
        guard = self._keys.document_work(work.id) if seconds else self._keys.document(work.id)
        numbers = [one.chunk.number for one in chunks]
        keys = [guard, self._keys.document_chunks(work.id), *self._chunks(work, embedder, numbers)]
        values = [chunk_fields(work, one) for one in chunks]
        width = len(values[0]) if values else 0
        flat = [part for fields in values for part in fields]
        arguments: list[Any] = [work.revision, embedder.fingerprint, total, round(seconds * 1000), width, *flat]
        return bool(await self._gate.run("document_write", lambda client: self._write(keys, arguments, client)))

    async def commit(self, work: Work, embedder: EmbedderIdentity, total: int, characters: int) -> bool:
        """See `ports.DocumentWork`."""
        keys = [
            self._keys.document(work.id),
            self._keys.document_text(work.id),
            self._keys.document_draft(work.id),
            self._keys.document_work(work.id),
            self._keys.corpus(owner_of(work.facts.tenant)),
            self._keys.corpus_state,
        ]
        arguments: list[Any] = [work.id, work.revision, embedder.fingerprint, total, characters]
        return bool(await self._gate.run("document_commit", lambda client: self._commit(keys, arguments, client)))

    async def fail(self, work: Work, error: str) -> None:
        """See `ports.DocumentWork`."""
        if await self._ended(work, error):
            await self._remove_chunks(work)

    async def finish(self, work: Work) -> None:
        """See `ports.DocumentWork`. The work ends last: who dies before has it done again by another worker."""
        await self._remove_chunks(work)
        await self._ended(work, "")

    async def vectors(self, work: Work, embedder: EmbedderIdentity, offset: int, limit: int) -> Sequence[Vector]:
        """See `ports.DocumentWork`."""
        names = self._chunks(work, embedder, range(offset, offset + limit))

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(name, "vector")
                replies: list[Any] = await pipe.execute()
                return replies

        return [vector for vector in await self._gate.run("document_work", read) if vector is not None]

    def _chunks(self, work: Work, embedder: EmbedderIdentity, numbers: Sequence[int]) -> list[str]:
        return [self._keys.chunk(embedder.fingerprint, work.id, work.revision, number) for number in numbers]

    async def _ended(self, work: Work, error: str) -> bool:
        keys = [
            self._keys.document_work(work.id),
            self._keys.corpus_work,
            self._keys.document(work.id),
            self._keys.document_draft(work.id),
        ]
        arguments: list[Any] = [work.id, work.revision, error]
        return bool(await self._gate.run("document_work", lambda client: self._end(keys, arguments, client)))

    async def _remove_chunks(self, work: Work) -> None:
        """Those of revisions up to this one that do not serve, of every embedder."""
        key = self._keys.document_chunks(work.id)
        sets = named(await self._gate.run("document_work", lambda client: client.hgetall(key)))
        serving = await self._gate.run(
            "document_work", lambda client: client.hget(self._keys.document(work.id), "revision")
        )
        for name, count in sets.items():
            embedder, _, revision = name.partition(":")
            if int(revision) <= work.revision and int(revision) != int(serving or 0):
                await self._remove(work.id, embedder, int(revision), int(count))

    async def _remove(self, document: str, embedder: str, revision: int, count: int) -> None:
        for start in range(0, count, REMOVED):
            numbers = range(start, min(start + REMOVED, count))
            names = [self._keys.chunk(embedder, document, revision, number) for number in numbers]
            await self._gate.run("document_work", lambda client, names=names: client.unlink(*names))  # type: ignore[misc]
        field = f"{embedder}:{revision}"
        key = self._keys.document_chunks(document)
        await self._gate.run("document_work", lambda client: client.hdel(key, field))


async def _exist(client: Redis, names: Sequence[str]) -> list[Any]:
    if not names:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(name)
        replies: list[Any] = await pipe.execute()
        return replies
