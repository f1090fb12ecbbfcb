"""Documents in Redis that a new embedder has not embedded yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from api.model import EmbedderIdentity
from api.ports.document_work import Epoch, Work
from api.redis_store.document_fields import Fields, facts_of, named
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scanning import scanned
from api.redis_store.scripts import script


class RedisReembedding:
    """See `ports.Reembedding`."""

    def __init__(self, gate: Gates, keys: Keys, worker: str) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._worker = worker
        self._embedded = script(gate.client, "document_embedded")
        self._complete = script(gate.client, "document_complete")

    async def behind(self, embedder: EmbedderIdentity) -> Epoch | None:
        """See `ports.Reembedding`."""
        names, key = ("epoch", f"done:{embedder.fingerprint}", "began_ms"), self._keys.corpus_state
        found: list[Any] = await self._gate.run("corpus", lambda client: client.hmget(key, *names))
        epoch, done, began = found
        return Epoch(int(epoch), (began or b"").decode()) if int(epoch or 0) > int(done or 0) else None

    async def missing(self, embedder: EmbedderIdentity) -> AsyncIterator[Work]:
        """See `ports.Reembedding`. Documents written meanwhile are embedded by whoever writes them."""
        prefix = self._keys.document("")
        async for keys in scanned(self._gate, "corpus", self._keys.corpus_state, f"{prefix}*"):
            for document in [key.removeprefix(prefix) for key in keys]:
                fields = await self._fields(document) if ":" not in document else {}
                if _lacks(fields, embedder.fingerprint):
                    yield Work(document, int(fields["revision"]), "store", facts_of(fields))

    async def embedded(self, work: Work, embedder: EmbedderIdentity) -> bool:
        """See `ports.Reembedding`."""
        keys = [self._keys.document(work.id), self._keys.embedding_duty(embedder.fingerprint)]
        arguments: list[Any] = [work.revision, embedder.fingerprint, self._worker]
        return bool(await self._gate.run("corpus", lambda client: self._embedded(keys, arguments, client)))

    async def complete(self, embedder: EmbedderIdentity, epoch: Epoch) -> None:
        """See `ports.Reembedding`. What changed since is found behind again."""
        keys = [self._keys.corpus_state]
        arguments: list[Any] = [embedder.fingerprint, epoch.number, epoch.began]
        await self._gate.run("corpus", lambda client: self._complete(keys, arguments, client))

    async def _fields(self, document: str) -> Fields:
        async def read(client: Redis) -> Any:
            return await client.hgetall(self._keys.document(document))

        return named(await self._gate.run("corpus", read))


def _lacks(fields: Fields, embedder: str) -> bool:
    revision = fields.get("revision", b"0")
    return int(revision) > 0 and fields.get(f"embedded:{embedder}") != revision
