"""Documents as a backup has them: each of one revision, with its text and its chunks, while the fleet works on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.ports.backup import StoredDocument
from api.ports.document_work import EmbeddedChunk
from api.redis_store.document_fields import Fields, chunk_of, document_of, named, range_of, vector_of
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.large_values import downloaded
from api.redis_store.scanning import scanned_once

READ: Final = 100
"""Chunks read by one command."""
TRIES: Final = 5
"""How often a document that changes while it is read is read again; after that it is left out."""


class DocumentReader:
    """Raises `StoreUnavailable`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys

    async def all(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]:
        """See `ports.BackupSource.documents`."""
        prefix = self._keys.document("")
        async for found in scanned_once(self._gate, "backup", self._keys.corpus_state, self._keys.document("*")):
            for document in (key.removeprefix(prefix) for key in found):
                if ":" not in document:
                    stored = await self._stored(document, tenants, vectors)
                    if stored is not None:
                        yield stored

    async def _stored(self, document: str, tenants: Collection[str], vectors: bool) -> StoredDocument | None:
        """None for one that does not serve, is not wanted, or does not stand still."""
        for _ in range(TRIES):
            fields = await self._fields(document)
            revision = int(fields.get("revision") or 0)
            if revision == 0 or (tenants and fields["tenant"].decode() not in tenants):
                return None
            content = await downloaded(self._gate, self._keys.document_text(document))
            sets = await self._sets(document, fields) if vectors else {}
            if content is not None and int((await self._fields(document)).get("revision") or 0) == revision:
                return StoredDocument(document_of(document, fields, {}), content.decode("utf-8", "replace"), sets)
        return None

    async def _fields(self, document: str) -> Fields:
        key = self._keys.document(document)
        return named(await self._gate.run("backup", lambda client: client.hgetall(key)))

    async def _sets(self, document: str, fields: Fields) -> Mapping[str, Sequence[EmbeddedChunk]]:
        """By each embedder that has embedded the revision that serves; a set with a gap is left out."""
        revision, total = fields["revision"], int(fields.get("chunks") or 0)
        embedders = [name[9:] for name, at in fields.items() if name.startswith("embedded:") and at == revision]
        found = {}
        for embedder in embedders:
            # Others may have been cut otherwise, so that only they know how many they are.
            count = await self._count(document, f"{embedder}:{int(revision)}") or total
            names = [self._keys.chunk(embedder, document, int(revision), number) for number in range(count)]
            chunks = [await self._chunks(names[start : start + READ]) for start in range(0, count, READ)]
            flat = [chunk for part in chunks for chunk in part]
            if all(chunk is not None for chunk in flat):
                found[embedder] = [chunk for chunk in flat if chunk is not None]
        return found

    async def _count(self, document: str, field: str) -> int:
        key = self._keys.document_chunks(document)
        return int(await self._gate.run("backup", lambda client: client.hget(key, field)) or 0)

    async def _chunks(self, names: Sequence[str]) -> list[EmbeddedChunk | None]:
        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(name)
                replies: list[Any] = await pipe.execute()
                return replies

        return [_embedded(named(fields)) for fields in await self._gate.run("backup", read)]


def _embedded(fields: Fields) -> EmbeddedChunk | None:
    try:
        vector, failure = vector_of(fields), fields.get("failure", b"").decode()
        assert vector is not None or failure
        return EmbeddedChunk(chunk_of(fields), vector, range_of(fields["span"]), range_of(fields["reach"]), failure)
    except (KeyError, ValueError, AssertionError):
        return None
