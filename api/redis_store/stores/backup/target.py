"""Restores a backup into a Redis that may be empty, or in use by a fleet.

Documents are put into service as by a worker that has just embedded them. An answer is restored if all documents that
it cites have the same content as when it was made, and it has not been deleted since. An answer for which documents
were searched stays fresh only if the tenant has the same documents as then. Otherwise it is restored as stale, since
any other document could change it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.answer_cache import CacheSweep, Selection
from api.ports.backup_storage import AnswerOutcome, DocumentOutcome, StoredAnswer, StoredDocument
from api.ports.document_store import Document, Draft, FailedChunk
from api.ports.document_work import Deletions, EmbeddedChunk, Work, ranges_of, tags_about
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import now_ms, on_all, script
from api.redis_store.search_index import VectorType
from api.redis_store.stores.cache.entries import encrypted_fields, with_type
from api.redis_store.stores.cache.invalidation import RedisInvalidationTags
from api.redis_store.stores.documents.document_records import DocumentDigests, RedisDocuments, owner_of
from api.redis_store.stores.documents.embeddings import RedisReembedding
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.redis_store.stores.documents.work import LIFETIME_MS, RedisDocumentWork
from api.redis_store.stores.fleet import RedisLeaderLease
from api.values import ERASED, EmbedderIdentity, erased_tag

TRIES: Final = 5
"""Retries of answers whose documents are changing. After that they are left out."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """An answer as it will be stored, or why it will not, as of `at_ms` by the clock of its partition."""

    answer: StoredAnswer
    at_ms: int
    outcome: AnswerOutcome
    fields: Mapping[str, str | bytes]


@dataclass(frozen=True, slots=True)
class _Deleted:
    """The recorded deletions."""

    tags: Sequence[Mapping[str, int]]
    ranges: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, *tags: Mapping[str, int]) -> _Deleted:
        return cls(tags, [one for noted in tags for one in ranges_of(noted)])

    def covers(self, answer: StoredAnswer) -> bool:
        """Returns whether the answer was deleted after it was stored."""
        about = tags_about(answer.digest, answer.tenant, list(answer.cites), answer.release)
        return any(noted.get(tag, -1) >= answer.created_ms for noted in self.tags for tag in about) or any(
            start <= answer.created_ms <= end for start, end in self.ranges
        )


_Act = Callable[[CacheKeys, Mapping[int, _Ready]], Coroutine[Any, Any, dict[int, str]]]


class AnswerWriter:
    """Restores answers. Raises `StoreUnavailable`. `max_size`: the limit of a partition. `vector_type`: of the fleet.

    In a dry run, `assumed` has the digests of documents that would be restored, `assumed_deletions` the deletions, and
    `assumed_rewind_ms` the time after which stored answers would be deleted first.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        keys: Keys,
        deletions: Deletions,
        max_size: int,
        vector_type: VectorType,
        *,
        new_outdate: bool,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._deletions = deletions
        self._digests = DocumentDigests(redis, keys)
        self._max_size = max_size
        self._vector_type: VectorType = vector_type
        self._new_outdate = new_outdate
        self._corpora: dict[str, tuple[int, str]] = {}
        self._restore = script(redis.client, "stores/cache/answers", "restore")
        self.assumed: dict[str, str] = {}
        self.assumed_rewind_ms: int | None = None
        self.assumed_deletions: Mapping[str, int] = {}

    async def put(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> list[AnswerOutcome]:
        """Stores answers that are still valid. `corpora`: digests of the documents at the time of the backup."""
        outcomes: list[AnswerOutcome | None] = [None] * len(answers)
        for _ in range(TRIES):
            left = [number for number, outcome in enumerate(outcomes) if outcome is None]
            found = await self._tried([answers[number] for number in left], corpora, dry_run=dry_run)
            for number, outcome in zip(left, found, strict=True):
                outcomes[number] = outcome
        return [outcome or "outdated" for outcome in outcomes]

    async def _tried(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> list[AnswerOutcome | None]:
        """Tries each answer once. None for an answer whose documents changed meanwhile."""
        if not answers:
            return []
        clocks = await self._clocks({self._keys.partition(answer.scope) for answer in answers})
        deleted = _Deleted.of(await self._deletions.noted(), self.assumed_deletions)
        cited = sorted({document for answer in answers for document in answer.cites})
        serving = await self._digests.serving(cited)
        grounded = set() if self.assumed else {answer.tenant for answer in answers if answer.is_grounded}
        changed = [tenant for tenant in grounded if not await self._is_same(tenant, corpora)]
        ready = []
        for answer in answers:
            is_fresh = not (answer.is_grounded and answer.tenant in changed)
            at_ms = clocks[self._keys.partition(answer.scope)]
            ready.append(_Ready(answer, at_ms, *self._judged(answer, at_ms, deleted, serving, is_fresh=is_fresh)))
        wanted = {number: one for number, one in enumerate(ready) if one.outcome in ("restored", "restored stale")}
        replies = await self._in_parts(self._there_in if dry_run else self._stored_in, wanted)
        outcomes: list[AnswerOutcome | None] = []
        for number, one in enumerate(ready):
            reply = replies.get(number, "restored")
            known = one.outcome if reply == "restored" else cast(AnswerOutcome, reply)
            outcomes.append(None if reply == "changed" else known)
        return outcomes

    def _judged(
        self,
        answer: StoredAnswer,
        now_ms: int,
        deleted: _Deleted,
        serving: Mapping[str, tuple[int, str]],
        *,
        is_fresh: bool,
    ) -> tuple[AnswerOutcome, Mapping[str, str | bytes]]:
        if answer.gone_ms <= now_ms or answer.created_ms <= now_ms - LIFETIME_MS:
            return "expired", {}
        if deleted.covers(answer):
            return "deleted since", {}
        revisions = {document: revision for document, (revision, digest) in serving.items()}
        present = {**{document: digest for document, (_, digest) in serving.items()}, **self.assumed}
        if any(present.get(document) != digest for document, digest in answer.cites.items()):
            return "outdated", {}
        ends = int(answer.fields["expires_ms"])
        fields: dict[str, str | bytes] = {**answer.fields, "sources": _cited(answer.fields["sources"], revisions)}
        fields |= with_type(answer.vector, fields, self._vector_type)
        if is_fresh or ends <= now_ms:
            return "restored", fields
        return "restored stale", {**fields, "expires_ms": str(now_ms)}

    async def _in_parts(self, act: _Act, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        """Runs `act` for each partition. Returns the outcomes by number."""
        parts: dict[CacheKeys, dict[int, _Ready]] = {}
        for number, one in wanted.items():
            parts.setdefault(self._keys.partition(one.answer.scope), {})[number] = one
        found = await on_all(act(part, of_part) for part, of_part in parts.items())
        return {number: reply for replies in found for number, reply in replies.items()}

    async def _stored_in(self, part: CacheKeys, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        async def store(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for one in wanted.values():
                    await self._restore(*self._call(part, one), pipe)
                return list(await pipe.execute())

        replies = await self._redis.of(part.invalidated).run("restore", store)
        return {number: reply.decode() for number, reply in zip(wanted, replies, strict=True)}

    async def _there_in(self, part: CacheKeys, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        """Returns what `_stored_in` would return, except that it ignores the limit of the partition."""

        async def look(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for one in wanted.values():
                    pipe.hget(part.entry(one.answer.scope, one.answer.digest), "created_ms")
                return list(await pipe.execute())

        found = await self._redis.of(part.invalidated).run("restore", look)
        is_there = {
            number: self._stays(int(at or -1), wanted[number].answer.created_ms)
            for number, at in zip(wanted, found, strict=True)
        }
        return {number: "there already" if there else "restored" for number, there in is_there.items()}

    def _stays(self, at_ms: int, created_ms: int) -> bool:
        is_rewound = self.assumed_rewind_ms is not None and at_ms > self.assumed_rewind_ms
        return at_ms >= created_ms and not is_rewound

    def _call(self, part: CacheKeys, one: _Ready) -> tuple[list[str], list[Any]]:
        answer = one.answer
        entry = part.entry(answer.scope, answer.digest)
        keys = [entry, part.invalidated, *part.eviction_keys, part.quarantine(entry)]
        tags = tags_about(answer.digest, answer.tenant, list(answer.cites), answer.release)
        documents = f"corpus:{answer.tenant}" if answer.is_grounded else ""
        tokens = answer.fields.get("completion_tokens", "0")
        times = [answer.created_ms, answer.gone_ms, one.at_ms]
        fields = encrypted_fields(self._redis.texts, entry, one.fields)
        pairs = [part for pair in fields.items() for part in pair]
        return keys, [*times, documents, self._max_size, answer.tenant, tokens, answer.uses, len(tags), *tags, *pairs]

    async def _is_same(self, tenant: str, corpora: Mapping[str, str]) -> bool:
        """Returns whether the tenant has the documents that its answers were made with. Cached until they change."""
        if not self._new_outdate:
            return True
        known = self._corpora.get(tenant)
        if known is None or known[0] != await self._digests.epoch(tenant) or not known[1]:
            known = self._corpora[tenant] = await self._digests.corpus(tenant)
        return bool(known[1]) and corpora.get(tenant, "") == known[1]

    async def _clocks(self, parts: Iterable[CacheKeys]) -> dict[CacheKeys, int]:
        """Reads the clock of each partition."""

        async def clock(part: CacheKeys) -> tuple[CacheKeys, int]:
            return part, await self._redis.of(part.invalidated).run("restore", now_ms)

        return dict(await on_all(clock(part) for part in parts))


def _cited(sources: str, revisions: Mapping[str, int]) -> bytes:
    """Replaces the revisions in the sources by those of this Redis. Other fields stay."""
    found = orjson.loads(sources)
    return orjson.dumps([{**one, "revision": revisions.get(one["document_id"], 0)} for one in found])


LEASE: Final = 30.0
"""Seconds after the last chunk. If this process dies, a worker takes the document after that."""
WRITTEN: Final = 50
"""Chunks per write."""
HELD: Final = 100
HELD_SECONDS: Final = 10.0
"""The cache is invalidated after `HELD` documents or `HELD_SECONDS`, whichever comes first."""


class DocumentWriter:
    """Restores documents. Raises `StoreUnavailable`.

    `most`: the limit of documents per tenant. `tells_of_new`: whether a new document may change cached answers.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        keys: Keys,
        worker: str,
        work: RedisDocumentWork,
        sweep: CacheSweep,
        answers: RedisInvalidationTags,
        most: int,
        *,
        tells_of_new: bool,
    ) -> None:
        self._clients = redis
        self._redis = redis.of(keys.corpus_state)
        self._keys = keys
        self._worker = worker
        self._documents = RedisDocuments(redis, keys)
        self._work = work
        self._index = RedisPassageIndex(redis, keys)
        self._anew = RedisReembedding(redis, keys, worker)
        self._sweep = sweep
        self._answers = answers
        self._most = most
        self._tells_of_new = tells_of_new
        self._dated = script(redis.client, "stores/documents/document_records", "restore_times")
        self._held: list[Work] = []
        self._since = 0.0

    async def put(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome:
        """Puts a document into service, all of it at once, or returns why not."""
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
        if work.pending_invalidation:
            await self._sweep.sweep(Selection(sources=frozenset((work.id,))), dry_run=False)
            await self._work.notified(work)
        (embedder, chunks), *further = stored.sets.items()
        identity = await self._identity(embedder, chunks)
        for start in range(0, len(chunks), WRITTEN):
            part = chunks[start : start + WRITTEN]
            await self._work.write(work, identity, part, len(chunks), start + len(part), LEASE)
        failed = [FailedChunk(one.chunk.number, one.failure) for one in chunks if one.vector is None]
        committed = await self._work.commit(work, identity, len(chunks), len(stored.text), failed)
        if committed is None:
            return "newer kept"  # a newer change was made meanwhile
        for name, others in further:
            await self._further(committed, name, others)
        await self._date(committed, stored.document)
        await self._hold(committed)
        return "restored"

    async def _further(self, work: Work, embedder: str, chunks: Sequence[EmbeddedChunk]) -> None:
        """Adds the chunks of another embedder, unless a worker is embedding all documents with it: that one will."""
        lease = RedisLeaderLease(self._clients, self._keys.embedding_lease(embedder), self._worker)
        if not await lease.acquire(LEASE):
            return
        identity = await self._identity(embedder, chunks)
        for start in range(0, len(chunks), WRITTEN):
            await self._work.rewrite(work, identity, chunks[start : start + WRITTEN], len(chunks))
        await self._anew.embedded(work, identity)
        await lease.release()

    async def _identity(self, embedder: str, chunks: Sequence[EmbeddedChunk]) -> EmbedderIdentity:
        """Creates the embedder's index and returns its identity."""
        size = next((len(one.vector) for one in chunks if one.vector is not None), 0)
        identity = EmbedderIdentity("", size // 4, embedder)
        await self._index.ensure(identity)
        return identity

    async def _date(self, work: Work, document: Document) -> None:
        keys = [self._keys.document(work.id), self._keys.corpus_documents(owner_of(work.facts.tenant))]
        arguments: list[Any] = [work.id, work.revision, document.created_ms, document.updated_ms]
        await self._redis.run("restore", lambda client: self._dated(keys, arguments, client))

    # -- the cache ----------------------------------------------------------------------------------------------------

    async def _hold(self, work: Work) -> None:
        """Collects documents, to invalidate the cache for several at once.

        If the lease expires first, a worker does it.
        """
        self._since = self._since if self._held else time.monotonic()
        self._held.append(work)
        if len(self._held) >= HELD or time.monotonic() - self._since > HELD_SECONDS:
            await self.settle()

    async def settle(self) -> None:
        """Deletes answers that cite a replaced document, and makes all answers of tenants with new documents stale."""
        held, self._held = self._held, []
        try:
            for tenant in {work.facts.tenant for work in held if work.replaced or self._tells_of_new}:
                await self._sweep.outdate(tenant)  # first: see `CacheInvalidator.notify_cache`
            if held and await self._has_answers():
                for work in held:
                    if work.replaced:
                        await self._sweep.sweep(Selection(sources=frozenset((work.id,))), dry_run=False)
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
        redis = self._clients.of(part.invalidated)
        return bool(await redis.run("restore", lambda client: client.zcard(part.eviction_keys[1])))


def _is_same(there: Document, document: Document) -> bool:
    """Also True for a document whose later replacement failed: its old revision is still current."""
    return there.digest == document.digest and there.revision > 0 and there.status != "processing"


class RedisBackupTarget:
    """The target of a restore, which a fleet may be using meanwhile. Every method raises `StoreUnavailable`."""

    def __init__(
        self, documents: DocumentWriter, answers: AnswerWriter, deletions: Deletions, sweep: CacheSweep
    ) -> None:
        self._documents = documents
        self._answers = answers
        self._deletions = deletions
        self._sweep = sweep
        self._erased: Mapping[str, int] | None = None
        """When tenants were erased; None before the first document."""

    async def put_document(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome:
        """Puts a document into service, all of it at once, or returns why not.

        One of a tenant that was erased since comes back only with `replace`.
        """
        if self._erased is None:
            self._erased = {tag: at for tag, at in (await self._deletions.noted()).items() if tag.startswith(ERASED)}
        about = stored.document
        if not replace and self._erased.get(erased_tag(about.facts.tenant), 0) >= about.updated_ms:
            return "erased since"
        outcome = await self._documents.put(stored, replace=replace, dry_run=dry_run)
        if dry_run and outcome == "restored":
            self._answers.assumed[stored.document.id] = stored.document.digest
        return outcome

    async def settle(self) -> None:
        """Notifies the cache of all restored documents."""
        await self._documents.settle()

    async def rewind(self, after_ms: int, tenants: Collection[str], *, dry_run: bool) -> int:
        """Deletes the answers that were stored after this time, and returns their number. No tenants: all.

        Raises `StoreUnavailable` if not all entries were looked at in time.
        """
        if dry_run:
            self._answers.assumed_rewind_ms = after_ms
        newer = [Selection(since_ms=after_ms + 1, tenant=tenant) for tenant in tenants or (None,)]
        swept = [await self._sweep.sweep(one, dry_run=dry_run) for one in newer]
        if not all(one.complete for one in swept):
            raise StoreUnavailable("not all newer answers were found in time")
        return sum(one.matched for one in swept)

    async def put_deletions(self, tags: Mapping[str, int], *, dry_run: bool) -> None:
        """Restores the list of deletions."""
        if dry_run:
            self._answers.assumed_deletions = tags
        else:
            await self._deletions.merge(tags)

    async def put_answers(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> Sequence[AnswerOutcome]:
        """Stores answers that are still valid. `corpora`: digests of the documents at the time of the backup."""
        return await self._answers.put(answers, corpora, dry_run=dry_run)
