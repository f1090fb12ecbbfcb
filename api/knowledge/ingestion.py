"""Carries out one change of a document: read, split, embed, put into service, notify the cache.

Each step can be repeated: if a worker crashes, another continues with the missing chunks. A newer request for the
document makes the work void; then nothing of it goes into service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from api.cancellation import cancel_and_wait
from api.errors import EmbeddingUnavailable, PayloadTooLarge, ServiceUnavailable, StoreUnavailable, UnreadableDocument
from api.knowledge.cache_invalidator import CacheInvalidator
from api.knowledge.chunk_embedding import ChunkEmbedding, EmbeddedText, NotEmbedded
from api.knowledge.chunking import Chunker, Cut, numbered, sections, spans
from api.knowledge.parsing import Parser
from api.knowledge.plain_text import Parsed
from api.languages.documents import language_of_document
from api.ports.document_store import Chunk, DocumentFacts, FailedChunk, PassageIndex
from api.ports.document_work import DocumentWork, EmbeddedChunk, Work, Written
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.values import BatchSize, EmbedderIdentity, Embedding

Write = Callable[[Sequence[EmbeddedChunk], int], Awaitable[bool]]
"""Writes chunks in addition to those already written. False if they are no longer wanted."""
Charge = Callable[[str, int], None]
"""Charges a tenant tokens that were embedded."""
LEASE: Final = 10.0
"""Lease of a document, in seconds. After a crash another worker takes over when it ends."""
PROBE: Final = "text"
"""Chunks in the first batch after the embedder failed."""
HEARTBEAT_SECONDS: Final = 2.0
ATTEMPTS: Final = 5
"""After this many workers in a row crashed on a document without progress, it is marked failed."""
MAX_DELAY: Final = 10.0
"""Seconds until a document is retried after the embedder failed."""


Placed = tuple[Chunk, tuple[tuple[int, int], tuple[int, int]]]
"""A chunk with its span and its reach."""


@dataclass(slots=True)
class _UnderWay:
    """A change that this worker carries out."""

    work: Work
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Ingestion:
    """One worker's part. `batches`: texts per embedding call, so that questions do not wait for long.

    `patience`: seconds for which a document is delayed while the embedder fails, before it is marked failed.
    `neighbours`: chunks shown on either side of a passage. `charge`: None if embedded tokens are not limited.
    """

    def __init__(
        self,
        work: DocumentWork,
        index: PassageIndex,
        parser: Parser,
        chunker: Chunker,
        embedded_text: EmbeddedText,
        embedder: Embedder,
        invalidator: CacheInvalidator,
        telemetry: Telemetry,
        batches: BatchSize,
        patience: float,
        neighbours: int = 0,
        charge: Charge | None = None,
    ) -> None:
        self._work = work
        self._index = index
        self._parser = parser
        self._chunker = chunker
        self._embedded_text = embedded_text
        self._embedder = embedder
        self._invalidator = invalidator
        self._telemetry = telemetry
        self._chunks = ChunkEmbedding(embedder, batches)
        self._patience = patience
        self._neighbours = neighbours
        self._charge = charge
        self._under_way: dict[str, _UnderWay] = {}
        self._taking = asyncio.Lock()
        """Held while a lease is taken, so that every lease of this worker is in `_under_way`."""

    def is_at(self, document: str) -> bool:
        """Returns whether this worker is processing a document now."""
        return document in self._under_way

    async def carry_out(self, document: str) -> bool:
        """Does all pending work of a document. False if there is none, or if it is being done, here or elsewhere.

        Waits if it is being done here. Raises `StoreUnavailable`, `ServiceUnavailable`: finished steps are kept, the
        rest stays pending.
        """
        async with self._taking:
            work = await self._work.take(document, LEASE)
            if work is not None:
                one = self._under_way[document] = _UnderWay(work)
        if work is None:
            await self._own_end(document)
            return False
        try:
            async with self._held(work):
                await self._carried_out(work)
        finally:
            one.ended.set()
            if self._under_way.get(document) is one:
                del self._under_way[document]
        return True

    async def _own_end(self, document: str) -> None:
        """Waits for this worker's own work on the document, unless that is void, since void work may take any time."""
        one = self._under_way.get(document)
        if one is not None and await self._work.renew(one.work, LEASE):
            await one.ended.wait()

    async def _carried_out(self, work: Work) -> None:
        try:
            await self._to_its_end(work)
        except (StoreUnavailable, ServiceUnavailable, asyncio.CancelledError):
            with suppress(StoreUnavailable):
                await self._work.release(work)
            raise

    async def is_waiting(self, document: str) -> bool:
        """Returns whether the document has pending work. Raises `StoreUnavailable`."""
        return await self._work.exists(document)

    async def _to_its_end(self, work: Work) -> None:
        if work.pending_invalidation:
            await self._invalidator.changed(work)
        stored: Work | None = work
        if work.phase == "store":  # invalidation is never given up
            try:
                stored = await self._stored(work)
            except (UnreadableDocument, PayloadTooLarge) as error:
                await self._failed(work, error.detail)
                return
            except EmbeddingUnavailable as error:
                await self._put_off(work, str(error))
                return
        if stored is not None:
            await self._invalidator.notify_cache(stored)
            await self._work.finish(stored)

    async def _failed(self, work: Work, reason: str) -> None:
        if work.pending_invalidation:
            await self._invalidator.owed(work)
        self._telemetry.document_failed(work.id, reason)
        await self._work.fail(work, reason)

    async def _put_off(self, work: Work, reason: str) -> None:
        """Delays the document while the embedder fails, so that others need not wait; after `patience` it fails."""
        pause = min(2.0**work.delays, MAX_DELAY)
        delayed = await self._work.delay(work, pause, self._patience, reason)
        if delayed == "for too long":
            await self._failed(work, f"It could not be embedded for {self._patience:g} s: {reason}")
        elif delayed == "delayed" and not work.delays:
            self._telemetry.document_delayed(work.id, reason)

    async def _stored(self, work: Work) -> Work | None:
        """The work left once the revision is in service. None if the work is void or another worker's."""
        if work.attempts > ATTEMPTS:
            raise UnreadableDocument(f"{ATTEMPTS} workers in a row crashed while ingesting it.")
        if work.delays:  # before the document is read and split for nothing
            await self._embedder.embed([PROBE], tenant=work.facts.tenant)
        work, text = await self._read(work)
        work = await in_its_language(work, text)
        chunks = await self._cut(text)
        if not chunks:
            raise UnreadableDocument("The document contains no text.")
        embedder = await self._embedder.identity()

        async def write(ready: Sequence[EmbeddedChunk], done: int) -> bool:
            is_written = await self._work.write(work, embedder, ready, len(chunks), done, LEASE)
            if is_written and self._charge is not None:
                tokens = sum(self._embedded_text.tokens(work.facts, one.chunk) for one in ready if one.vector)
                self._charge(work.facts.tenant, tokens)
            return is_written

        failures = await self._embedded(work, embedder, text, chunks, write)
        if failures is None:
            return None
        if len(failures) == len(chunks):
            raise UnreadableDocument(f"None of its {len(chunks)} passages could be embedded: {failures[0]}")
        failed = [FailedChunk(number, reason) for number, reason in sorted(failures.items())]
        stored = await self._work.commit(work, embedder, len(chunks), len(text), failed)
        if stored is not None:
            self._telemetry.document_stored(len(chunks))
        return stored

    async def reembed(self, work: Work, embedder: EmbedderIdentity, text: str) -> bool:
        """Embeds a revision in service with a new embedder. False if it is void or the lease is lost."""
        chunks = await self._cut(text)

        async def write(ready: Sequence[EmbeddedChunk], _: int) -> bool:
            return await self._work.rewrite(work, embedder, ready, len(chunks))

        return await self._embedded(work, embedder, text, chunks, write) is not None

    async def _cut(self, text: str) -> list[Chunk]:
        """Splits section by section, so that shutdown waits for one section at most."""
        cuts: list[Cut] = []
        tables = await asyncio.to_thread(self._chunker.tables, text)
        for start, section in await asyncio.to_thread(sections, text):
            cuts += await asyncio.to_thread(self._chunker.cut, start, section, tables)
        return await asyncio.to_thread(numbered, text, cuts)

    async def _read(self, work: Work) -> tuple[Work, str]:
        """The text, and the work with the file's own title if none was given."""
        content = await self._work.draft(work)
        if content is None:
            raise UnreadableDocument("The uploaded content is lost. Upload the document again.")
        if work.media_type is None:
            return work, content.decode()
        parsed = await self._parser.parse(content, work.media_type, work.facts.title)
        work = replace(work, facts=with_what_was_read(work.facts, parsed, untitled=work.untitled))
        await self._work.settle_text(work, parsed.marked_text.encode())
        return work, parsed.marked_text

    async def _embedded(
        self, work: Work, embedder: EmbedderIdentity, text: str, chunks: Sequence[Chunk], write: Write
    ) -> Mapping[int, str] | None:
        """Writes all missing chunks. Gives the reasons for chunks that failed, by number; None if the work is void."""
        await self._index.ensure(embedder)
        placed = list(zip(chunks, await asyncio.to_thread(spans, text, chunks, self._neighbours), strict=True))
        written = await self._written(work, embedder, chunks)
        failures = dict(written.failures)
        missing = [one for one in placed if one[0].number not in written.spans]
        done = 0
        while True:
            part = missing[done : done + self._chunks.batch]
            ready = await self._ready(work, part, embedder)
            if not await write(ready, len(chunks) - len(missing) + done):
                return None
            failures |= self._told_of_failures(work, ready)
            done += len(part)
            if done >= len(missing):
                return failures

    async def _written(self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[Chunk]) -> Written:
        """The chunks already written, except those split under other settings."""
        written = await self._work.written(work, embedder)
        await self._work.trim(work, embedder, range(len(chunks), written.total))
        spans = {one.number: (one.start, one.end) for one in chunks}
        kept = {number: span for number, span in written.spans.items() if spans.get(number) == span}
        return Written(kept, written.total, {n: why for n, why in written.failures.items() if n in kept})

    async def _ready(self, work: Work, part: Sequence[Placed], embedder: EmbedderIdentity) -> list[EmbeddedChunk]:
        """Embeds with `embedder` only: the embedder may change at any time."""
        texts = [self._embedded_text.of(work.facts, chunk) for chunk, _ in part]
        embeddings = await self._chunks.embed(texts, work.facts.tenant)
        if await self._embedder.identity() != embedder:
            raise ServiceUnavailable("The embedding model has changed. The document is embedded again.", retry_after=1)
        return [_embedded_chunk(one, embedding) for one, embedding in zip(part, embeddings, strict=True)]

    def _told_of_failures(self, work: Work, ready: Sequence[EmbeddedChunk]) -> dict[int, str]:
        """The written chunks that could not be embedded."""
        failures = {one.chunk.number: one.failure for one in ready if one.vector is None}
        for number, reason in failures.items():
            self._telemetry.chunk_not_embedded(work.id, number, reason)
        self._telemetry.chunks_embedded(len(ready) - len(failures))
        return failures

    @asynccontextmanager
    async def _held(self, work: Work) -> AsyncIterator[None]:
        """Renews the lease while the block runs."""
        keeper = asyncio.create_task(self._keep(work), name="ingestion_keeper")
        try:
            yield
        finally:
            await cancel_and_wait([keeper])

    async def _keep(self, work: Work) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            with suppress(StoreUnavailable):
                if not await self._work.renew(work, LEASE):
                    return  # writes from now on are refused


async def in_its_language(work: Work, text: str) -> Work:
    """The work with the language of the text, if an earlier release has read it."""
    if work.facts.language is not None:
        return work
    language = await asyncio.to_thread(language_of_document, text)
    return replace(work, facts=replace(work.facts, language=language))


def with_what_was_read(facts: DocumentFacts, parsed: Parsed, *, untitled: bool) -> DocumentFacts:
    """Adds the file's warnings, and its title, tags and language if none were given."""
    title = parsed.title if untitled and parsed.title else facts.title
    language = facts.language or parsed.language
    return replace(facts, title=title, tags=facts.tags or parsed.tags, warnings=parsed.warnings, language=language)


def _embedded_chunk(placed: Placed, embedding: Embedding | NotEmbedded) -> EmbeddedChunk:
    chunk, (span, reach) = placed
    if isinstance(embedding, NotEmbedded):
        return EmbeddedChunk(chunk, None, span, reach, embedding.reason)
    return EmbeddedChunk(chunk, embedding.vector, span, reach)
