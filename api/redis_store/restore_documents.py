"""Puts documents of a backup into service, as a worker would that had just embedded them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from api.errors import StoreUnavailable
from api.model import EmbedderIdentity
from api.ports.backup import DocumentOutcome, StoredDocument
from api.ports.document_work import EmbeddedChunk, Work
from api.ports.documents import Document, Draft, FailedChunk
from api.ports.sweep import CacheSweep, Selection
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.document_fields import owner_of
from api.redis_store.document_work import RedisDocumentWork
from api.redis_store.documents import RedisDocuments
from api.redis_store.duty import RedisDuty
from api.redis_store.fan_out import on_all
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.outdated_answers import RedisOutdatedAnswers
from api.redis_store.passage_index import RedisPassageIndex
from api.redis_store.reembedding import RedisReembedding
from api.redis_store.scripts import script

LEASE: Final = 30.0
"""Seconds from the last chunk on. Should this process die, a worker takes the document on after so long."""
WRITTEN: Final = 50
"""Chunks written by one command."""
HELD: Final = 100
HELD_SECONDS: Final = 10.0
"""The cache is told of so many documents together, and not later than this."""


class DocumentWriter:
    """Raises `StoreUnavailable`. `most`: documents of a tenant; `tells_of_new`: a new document may outdate answers."""

    def __init__(
        self,
        gate: Gates,
        keys: Keys,
        worker: str,
        work: RedisDocumentWork,
        sweep: CacheSweep,
        answers: RedisOutdatedAnswers,
        most: int,
        *,
        tells_of_new: bool,
    ) -> None:
        self._gates = gate
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._worker = worker
        self._documents = RedisDocuments(gate, keys)
        self._work = work
        self._index = RedisPassageIndex(gate, keys)
        self._anew = RedisReembedding(gate, keys, worker)
        self._sweep = sweep
        self._answers = answers
        self._most = most
        self._tells_of_new = tells_of_new
        self._dated = script(gate.client, "document_dated")
        self._held: list[Work] = []
        self._since = 0.0

    async def put(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome:
        """See `ports.BackupTarget.put_document`."""
        document = stored.document
        there = await self._documents.find(document.id)
        if there is not None and _is_same(there, document):
            return "unchanged"
        if there is not None and there.updated_ms > document.updated_ms and not replace:
            return "newer kept"
        if dry_run:
            return "restored" if stored.sets else "to embed"
        draft = Draft(document.id, document.facts, document.digest, stored.text.encode())
        proposal = await self._documents.propose(draft, self._most)
        if proposal.verdict == "full":
            return "refused"
        if proposal.verdict == "unchanged":
            return "unchanged"
        work = await self._work.take(document.id, LEASE) if stored.sets else None
        if work is None or work.revision != proposal.revision:
            return "to embed"
        return await self._put(work, stored)

    async def _put(self, work: Work, stored: StoredDocument) -> DocumentOutcome:
        if work.owes:
            await self._sweep.sweep(Selection(source=work.id), dry_run=False)
            await self._work.told(work)
        (embedder, chunks), *further = stored.sets.items()
        identity = await self._identity(embedder, chunks)
        for start in range(0, len(chunks), WRITTEN):
            part = chunks[start : start + WRITTEN]
            await self._work.write(work, identity, part, len(chunks), start + len(part), LEASE)
        failed = [FailedChunk(one.chunk.number, one.failure) for one in chunks if one.vector is None]
        committed = await self._work.commit(work, identity, len(chunks), len(stored.text), failed)
        if committed is None:
            return "newer kept"  # something newer was asked for meanwhile
        for name, others in further:
            await self._further(committed, name, others)
        await self._date(committed, stored.document)
        await self._hold(committed)
        return "restored"

    async def _further(self, work: Work, embedder: str, chunks: Sequence[EmbeddedChunk]) -> None:
        """By another embedder too, unless a worker that has it is embedding documents anew: then it embeds this one."""
        duty = RedisDuty(self._gates, self._keys.embedding_duty(embedder), self._worker)
        if not await duty.hold(LEASE):
            return
        identity = await self._identity(embedder, chunks)
        for start in range(0, len(chunks), WRITTEN):
            await self._work.rewrite(work, identity, chunks[start : start + WRITTEN], len(chunks))
        await self._anew.embedded(work, identity)
        await duty.leave()

    async def _identity(self, embedder: str, chunks: Sequence[EmbeddedChunk]) -> EmbedderIdentity:
        """With its index there."""
        size = next((len(one.vector) for one in chunks if one.vector is not None), 0)
        identity = EmbedderIdentity("", size // 4, embedder)
        await self._index.ensure(identity)
        return identity

    async def _date(self, work: Work, document: Document) -> None:
        keys = [self._keys.document(work.id), self._keys.corpus_documents(owner_of(work.facts.tenant))]
        arguments: list[Any] = [work.id, work.revision, document.created_ms, document.updated_ms]
        await self._gate.run("restore", lambda client: self._dated(keys, arguments, client))

    # -- the cache ----------------------------------------------------------------------------------------------------

    async def _hold(self, work: Work) -> None:
        """Until the cache is told of several together. Should the lease end before, a worker tells."""
        self._since = self._since if self._held else time.monotonic()
        self._held.append(work)
        if len(self._held) >= HELD or time.monotonic() - self._since > HELD_SECONDS:
            await self.settle()

    async def settle(self) -> None:
        """Answers that used a document that was replaced go; of tenants with further ones, all are stale."""
        held, self._held = self._held, []
        try:
            for tenant in {work.facts.tenant for work in held if work.replaced or self._tells_of_new}:
                await self._sweep.outdate(tenant)  # first: see `Outdating.told_of`
            if held and await self._has_answers():
                for work in held:
                    if work.replaced:
                        await self._sweep.sweep(Selection(source=work.id), dry_run=False)
                for tenant in {work.facts.tenant for work in held} if self._tells_of_new else ():
                    await self._answers.expire_all(tenant)
            for work in held:
                await self._work.finish(work)
        except (StoreUnavailable, asyncio.CancelledError):
            for work in held:
                with suppress(StoreUnavailable):
                    await self._work.release(work)
            raise

    async def _has_answers(self) -> bool:
        return any(await on_all(self._has_answers_in(part) for part in self._keys.partitions))

    async def _has_answers_in(self, part: CacheKeys) -> bool:
        gate = self._gates.of(part.invalidated)
        return bool(await gate.run("restore", lambda client: client.zcard(part.books[1])))


def _is_same(there: Document, document: Document) -> bool:
    """Also one that a later attempt to replace it left as failed: it serves."""
    return there.digest == document.digest and there.revision > 0 and there.status != "processing"
