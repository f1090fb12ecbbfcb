"""Which documents of a tenant serve, as one digest: an answer depends on all, not only on those it cites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.redis_store.document_fields import owner_of
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys

READ: Final = 500
"""Documents read by one command."""


class DocumentDigests:
    """Raises `StoreUnavailable`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys

    async def serving(self, documents: Sequence[str]) -> Mapping[str, tuple[int, str]]:
        """Revision and digest of each that serves."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for document in documents:
                    pipe.hmget(self._keys.document(document), "revision", "digest")
                replies: list[Any] = await pipe.execute()
                return replies

        replies = await self._gate.run("digests", read) if documents else []
        return {
            document: (int(revision), digest.decode())
            for document, (revision, digest) in zip(documents, replies, strict=True)
            if int(revision or 0) > 0 and digest is not None
        }

    async def corpus(self, tenant: str) -> tuple[int, str]:
        """The epoch of a tenant's documents, and the digest over all that serve; empty where they change meanwhile."""
        before = await self.epoch(tenant)
        found: dict[str, tuple[int, str]] = {}
        for start in range(0, max(await self._count(tenant), 1), READ):
            found |= await self.serving(await self._listed(tenant, start))
        lines = sorted(f"{document} {digest}" for document, (_, digest) in found.items())
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return before, digest if await self.epoch(tenant) == before else ""

    async def epoch(self, tenant: str) -> int:
        """How often the tenant's documents have changed."""
        key = self._keys.corpus(owner_of(tenant))
        return int(await self._gate.run("digests", lambda client: client.hget(key, "epoch")) or 0)

    async def _count(self, tenant: str) -> int:
        key = self._keys.corpus_documents(owner_of(tenant))
        return int(await self._gate.run("digests", lambda client: client.zcard(key)))

    async def _listed(self, tenant: str, start: int) -> list[str]:
        key = self._keys.corpus_documents(owner_of(tenant))
        found: Any = await self._gate.run("digests", lambda client: client.zrange(key, start, start + READ - 1))
        return [document.decode() for document in found]
