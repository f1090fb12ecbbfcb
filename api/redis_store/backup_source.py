"""The fleet's memory as a backup reads it: by the keys themselves, in bounded batches, while the fleet works."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Final

from api.ports.backup import StoredAnswer, StoredDocument
from api.redis_store.backup_answers import AnswerReader
from api.redis_store.backup_documents import DocumentReader
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.clock import now_ms
from api.redis_store.document_digests import DocumentDigests
from api.redis_store.fan_out import on_all
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scanning import scanned_once

_OWNER: Final = re.compile(r"[0-9a-f]{16}")
"""What tells a tenant's key from others that begin alike."""


class RedisBackupSource:
    """See `ports.BackupSource`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gates = gate
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._documents = DocumentReader(gate, keys)
        self._answers = AnswerReader(gate, keys)
        self._digests = DocumentDigests(gate, keys)

    async def now_ms(self) -> int:
        """See `ports.BackupSource`."""
        return await self._gate.run("backup", now_ms)

    async def expected(self) -> tuple[int, int]:
        """See `ports.BackupSource`."""
        documents = sum([await self._documents_of(key) for key in await self._owners()])
        return documents, sum(await on_all(self._answers_in(part) for part in self._keys.partitions))

    def documents(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]:
        """See `ports.BackupSource`."""
        return self._documents.all(tenants, vectors=vectors)

    def answers(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]:
        """See `ports.BackupSource`."""
        return self._answers.all(tenants)

    async def unsettled(self) -> Mapping[str, int | None]:
        """See `ports.BackupSource`."""
        found: dict[str, int | None] = {}
        for key in await self._owners():
            tenant, epoch = await self._gate.run("backup", lambda client, k=key: client.hmget(k, "tenant", "epoch"))  # type: ignore[misc]
            if tenant is not None:
                found[tenant.decode()] = int(epoch or 0)
        work: Any = await self._gate.run("backup", lambda client: client.zrange(self._keys.corpus_work, 0, -1))
        for document in work:
            key = self._keys.document_work(document.decode())
            (tenant,) = await self._gate.run("backup", lambda client, k=key: client.hmget(k, "tenant"))  # type: ignore[misc]
            if tenant is not None:
                found[tenant.decode()] = None
        return found

    async def corpus(self, tenant: str) -> tuple[int, str]:
        """See `ports.BackupSource`."""
        return await self._digests.corpus(tenant)

    async def _owners(self) -> list[str]:
        """The keys of all tenants' documents."""
        prefix = self._keys.corpus("")
        batches = [found async for found in scanned_once(self._gate, "backup", self._keys.corpus_state, f"{prefix}*")]
        return [key for found in batches for key in found if _OWNER.fullmatch(key.removeprefix(prefix))]

    async def _documents_of(self, key: str) -> int:
        return int(await self._gate.run("backup", lambda client: client.hget(key, "documents")) or 0)

    async def _answers_in(self, part: CacheKeys) -> int:
        gate = self._gates.of(part.invalidated)
        return int(await gate.run("backup", lambda client: client.zcard(part.books[1])))
