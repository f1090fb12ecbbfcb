"""Carries out one change of the knowledge base: read, cut, embed, put into service, tell the cache.

Each step can be repeated: a worker that dies is succeeded by another, which goes on where chunks are missing. What is
asked for meanwhile makes the work void, and nothing of it serves.
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
from api.knowledge.chunking import Chunker, numbered, sections, spans
from api.knowledge.parsing import Parser
from api.ports.document_work import DocumentWork, EmbeddedChunk, Work, Written
from api.ports.documents import Chunk, FailedChunk, PassageIndex
from api.ports.models import Embedder
from api.ports.telemetry import Telemetry
from api.values import BatchSize, EmbedderIdentity, Embedding

Write = Callable[[Sequence[EmbeddedChunk], int], Awaitable[bool]]
"""Writes chunks, beside so many others. False where they are not wanted any more."""
LEASE: Final = 10.0
"""Seconds. A worker that dies is succeeded by another after so long."""
PROBE: Final = "text"
"""Embedded first where the embedder failed before."""
HEARTBEAT_SECONDS: Final = 2.0
ATTEMPTS: Final = 5
"""Workers in a row that may die of a document, none of which gets on with it, before it is given up."""
MAX_DELAY: Final = 10.0
"""Seconds until a document whose embedder failed is taken on again, however often it did."""


Placed = tuple[Chunk, tuple[tuple[int, int], tuple[int, int]]]
"""A chunk with its span and its reach."""


@dataclass(slots=True)
class _UnderWay:
    """A change that this worker is carrying out."""

    work: Work
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Ingestion:
    """For one worker. `batches`: how many texts are embedded by one call, so that questions need not wait for more.

    `patience`: seconds for which a document is put off while the embedder fails; then it is given up. `neighbours`:
    chunks to either side that a passage is shown with.
    """

    def __init__(
        self,
        work: DocumentWork,
        index: PassageIndex,
        parser: Parser,
        chunker: Chunker,
        embedded_text: EmbeddedText,
        embedder: Embedder,
        outdating: CacheInvalidator,
        events: Telemetry,
        batches: BatchSize,
        patience: float,
        neighbours: int = 0,
    ) -> None:
        self._work = work
        self._index = index
        self._parser = parser
        self._chunker = chunker
        self._embedded_text = embedded_text
        self._embedder = embedder
        self._outdating = outdating
        self._events = events
        self._chunks = ChunkEmbedding(embedder, batches)
        self._patience = patience
        self._neighbours = neighbours
        self._under_way: dict[str, _UnderWay] = {}
        self._taking = asyncio.Lock()
        """So that what this worker has in Redis is under way here."""

    def is_at(self, document: str) -> bool:
        """Whether this worker is at work on a document now."""
        return document in self._under_way

    async def carry_out(self, document: str) -> bool:
        """All that is left to do of a document; false where there is nothing, or somebody is at it, here or elsewhere.

        Where that is this worker itself, its end is awaited. Raises `StoreUnavailable`, `ServiceUnavailable`: what is
        done is kept, and the rest is left.
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
        """Waits for what this worker is doing itself, unless that is void: then it may take as long as it likes."""
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
        """Whether there is something left to do of a document. Raises `StoreUnavailable`."""
        return await self._work.exists(document)

    async def _to_its_end(self, work: Work) -> None:
        if work.pending_invalidation:
            await self._outdating.changed(work)
        stored: Work | None = work
        if work.phase == "store":  # to tell the cache of what has changed is never given up
            try:
                stored = await self._stored(work)
            except (UnreadableDocument, PayloadTooLarge) as error:
                await self._failed(work, error.detail)
                return
            except EmbeddingUnavailable as error:
                await self._put_off(work, str(error))
                return
        if stored is not None:
            await self._outdating.notify_cache(stored)
            await self._work.finish(stored)

    async def _failed(self, work: Work, reason: str) -> None:
        if work.pending_invalidation:
            await self._outdating.owed(work)
        self._events.document_failed(work.id, reason)
        await self._work.fail(work, reason)

    async def _put_off(self, work: Work, reason: str) -> None:
        """The embedder fails: others need not wait for it here. Past the patience the document is given up."""
        pause = min(2.0**work.delays, MAX_DELAY)
        delayed = await self._work.delay(work, pause, self._patience, reason)
        if delayed == "for too long":
            await self._failed(work, f"It could not be embedded for {self._patience:g} s: {reason}")
        elif delayed == "delayed" and not work.delays:
            self._events.document_delayed(work.id, reason)

    async def _stored(self, work: Work) -> Work | None:
        """What is left to do once the revision serves; None where the work is void, or another's by now."""
        if work.attempts > ATTEMPTS:
            raise UnreadableDocument(f"given up after {ATTEMPTS} attempts")
        if work.delays:  # before it is read and cut, for nothing
            await self._embedder.embed([PROBE], tenant=work.facts.tenant)
        work, text = await self._read(work)
        chunks = await self._cut(text)
        if not chunks:
            raise UnreadableDocument("There is no text in it.")
        embedder = await self._embedder.identity()

        async def write(ready: Sequence[EmbeddedChunk], done: int) -> bool:
            return await self._work.write(work, embedder, ready, len(chunks), done, LEASE)

        failures = await self._embedded(work, embedder, text, chunks, write)
        if failures is None:
            return None
        if len(failures) == len(chunks):
            raise UnreadableDocument(f"None of its {len(chunks)} passages could be embedded: {failures[0]}")
        failed = [FailedChunk(number, reason) for number, reason in sorted(failures.items())]
        stored = await self._work.commit(work, embedder, len(chunks), len(text), failed)
        if stored is not None:
            self._events.document_stored(len(chunks))
        return stored

    async def embed_anew(self, work: Work, embedder: EmbedderIdentity, text: str) -> bool:
        """Embeds a revision that serves by a further embedder; false where it is void, or another's duty by now."""
        chunks = await self._cut(text)

        async def write(ready: Sequence[EmbeddedChunk], _: int) -> bool:
            return await self._work.rewrite(work, embedder, ready, len(chunks))

        return await self._embedded(work, embedder, text, chunks, write) is not None

    async def _cut(self, text: str) -> list[Chunk]:
        """Section by section: whoever stops the worker waits for one of them at most."""
        cuts: list[tuple[int, str]] = []
        for start, section in sections(text):
            cuts += await asyncio.to_thread(self._chunker.cut, start, section)
        return await asyncio.to_thread(numbered, text, cuts)

    async def _read(self, work: Work) -> tuple[Work, str]:
        """The text, and the work on it: with the file's own title, where it was given none."""
        content = await self._work.draft(work)
        if content is None:
            raise UnreadableDocument("What was given is lost.")
        if work.media_type is None:
            return work, content.decode()
        parsed = await self._parser.parse(content, work.media_type)
        if work.untitled and parsed.title:
            work = replace(work, facts=replace(work.facts, title=parsed.title))
        await self._work.settle_text(work, parsed.text.encode())
        return work, parsed.text

    async def _embedded(
        self, work: Work, embedder: EmbedderIdentity, text: str, chunks: Sequence[Chunk], write: Write
    ) -> Mapping[int, str] | None:
        """Writes all chunks that are missing: why some could not be embedded, by number; None where they are void."""
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
        """What is written already. What was cut otherwise, by other settings, does not count."""
        written = await self._work.written(work, embedder)
        await self._work.trim(work, embedder, range(len(chunks), written.total))
        spans = {one.number: (one.start, one.end) for one in chunks}
        kept = {number: span for number, span in written.spans.items() if spans.get(number) == span}
        return Written(kept, written.total, {n: why for n, why in written.failures.items() if n in kept})

    async def _ready(self, work: Work, part: Sequence[Placed], embedder: EmbedderIdentity) -> list[EmbeddedChunk]:
        """Embedded by `embedder`, or not at all: who embeds may change at any time."""
        texts = [self._embedded_text.of(work.facts, chunk) for chunk, _ in part]
        embeddings = await self._chunks.embed(texts, work.facts.tenant)
        if await self._embedder.identity() != embedder:
            raise ServiceUnavailable("Another model embeds now: the document is begun anew.", retry_after=1)
        return [_embedded_chunk(one, embedding) for one, embedding in zip(part, embeddings, strict=True)]

    def _told_of_failures(self, work: Work, ready: Sequence[EmbeddedChunk]) -> dict[int, str]:
        """Of chunks that were written: those that could not be embedded."""
        failures = {one.chunk.number: one.failure for one in ready if one.vector is None}
        for number, reason in failures.items():
            self._events.chunk_not_embedded(work.id, number, reason)
        self._events.chunks_embedded(len(ready) - len(failures))
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
                    return  # what is written from here on is refused


def _embedded_chunk(placed: Placed, embedding: Embedding | NotEmbedded) -> EmbeddedChunk:
    chunk, (span, reach) = placed
    if isinstance(embedding, NotEmbedded):
        return EmbeddedChunk(chunk, None, span, reach, embedding.reason)
    return EmbeddedChunk(chunk, embedding.vector, span, reach)
