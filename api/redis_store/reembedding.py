"""Documents in Redis that a new embedder has not embedded yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from redis.asyncio import Redis

from api.model import EmbedderIdentity
from api.ports.documents import Work
from api.redis_store.document_fields import Fields, facts_of, named
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

SCANNED: Final = 500


class RedisReembedding:
    """See `ports.Reembedding`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._embedded = script(gate.client, "document_embedded")

    async def behind(self, embedder: EmbedderIdentity) -> int | None:
        """See `ports.Reembedding`."""
        names, key = ("epoch", f"done:{embedder.fingerprint}"), self._keys.corpus_state
        found: list[Any] = await self._gate.run("corpus", lambda client: client.hmget(key, *names))
        epoch, done = found
        return int(epoch) if int(epoch or 0) > int(done or 0) else None

    async def missing(self, embedder: EmbedderIdentity) -> AsyncIterator[Work]:
        """See `ports.Reembedding`. Documents written meanwhile are embedded by whoever writes them."""
        cursor = 0
        while True:
            cursor, found = await self._gate.run(
                "corpus",
                lambda client, at=cursor: client.scan(at, match=self._keys.document("*"), count=SCANNED),  # type: ignore[misc]
            )
            keys = [key.decode() for key in found]
            for document in [key.removeprefix(self._keys.document("")) for key in keys]:
                fields = await self._fields(document) if ":" not in document else {}
                if _lacks(fields, embedder.fingerprint):
                    yield Work(document, int(fields["revision"]), "store", facts_of(fields))
            if cursor == 0:
                return

    async def embedded(self, work: Work, embedder: EmbedderIdentity) -> None:
        """See `ports.Reembedding`."""
        keys = [self._keys.document(work.id)]
        arguments: list[Any] = [work.revision, embedder.fingerprint]
        await self._gate.run("corpus", lambda client: self._embedded(keys, arguments, client))

    async def complete(self, embedder: EmbedderIdentity, epoch: int) -> None:
        """See `ports.Reembedding`. What changed since is found behind again."""
        key, field = self._keys.corpus_state, f"done:{embedder.fingerprint}"
        await self._gate.run("corpus", lambda client: client.hset(key, field, str(epoch)))

    async def _fields(self, document: str) -> Fields:
        async def read(client: Redis) -> Any:
            return await client.hgetall(self._keys.document(document))

        return named(await self._gate.run("corpus", read))


def _lacks(fields: Fields, embedder: str) -> bool:
    revision = fields.get("revision", b"0")
    return int(revision) > 0 and fields.get(f"embedded:{embedder}") != revision
