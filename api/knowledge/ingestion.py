"""Carries out one change of the knowledge base: read, cut, embed, put into service, tell the cache.

Each step can be repeated: a worker that dies is succeeded by another, which goes on where chunks are missing. What is
asked for meanwhile makes the work void, and nothing of it serves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from api.background import cancelled
from api.errors import EmbeddingUnavailable, PayloadTooLarge, ServiceUnavailable, StoreUnavailable, UnreadableDocument
from api.knowledge.chunking import Chunker, numbered, sections, spans
from api.knowledge.embedded_text import EmbeddedText
from api.knowledge.outdating import Outdating
from api.knowledge.parsing import Parser
from api.model import EmbedderIdentity, Vector
from api.ports.document_work import DocumentWork, EmbeddedChunk, Work
from api.ports.documents import Chunk
from api.ports.models import Embedder
from api.ports.passages import PassageIndex

T = TypeVar("T")
Write = Callable[[Sequence[EmbeddedChunk], int], Awaitable[bool]]
"""Writes chunks, beside so many others. False where they are not wanted any more."""
LEASE: Final = 10.0
"""Seconds. A worker that dies is succeeded by another after so long."""
BEAT: Final = 2.0
ATTEMPTS: Final = 5
"""Workers in a row that may die of a document, none of which gets on with it, before it is given up."""
LONGEST_PAUSE: Final = 5.0


class IngestionEvents(Protocol):
    """Who is told."""

    def document_stored(self, chunks: int) -> None: ...

    def document_failed(self, document: str, error: str) -> None: ...

    def chunks_embedded(self, count: int) -> None: ...


@dataclass(slots=True)
class _UnderWay:
    """A change that this worker is carrying out."""

    work: Work
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Ingestion:
    """For one worker. `batch`: texts that are embedded by one call, so that questions need not wait for more.

    `neighbours`: chunks to either side that a passage is shown with.
    """

    def __init__(
        self,
        work: DocumentWork,
        index: PassageIndex,
        parser: Parser,
        chunker: Chunker,
        embedded_text: EmbeddedText,
        embedder: Embedder,
        outdating: Outdating,
        events: IngestionEvents,
        batch: int,
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
        self._batch = batch
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
        if work.owes:
            await self._outdating.changed(work)
        stored: Work | None = work
        if work.phase == "store":  # to tell the cache of what has changed is never given up
            try:
                stored = await self._stored(work)
            except (UnreadableDocument, PayloadTooLarge) as error:
                if work.owes:
                    await self._outdating.owed(work)
                self._events.document_failed(work.id, error.detail)
                await self._work.fail(work, error.detail)
                return
        if stored is not None:
            await self._outdating.told_of(stored)
            await self._work.finish(stored)

    async def _stored(self, work: Work) -> Work | None:
        """What is left to do once the revision serves; None where the work is void, or another's by now."""
        if work.attempts > ATTEMPTS:
            raise UnreadableDocument(f"given up after {ATTEMPTS} attempts")
        work, text = await self._read(work)
        chunks = await self._cut(text)
        if not chunks:
            raise UnreadableDocument("There is no text in it.")
        embedder = await self._patiently(self._embedder.identity)

        async def write(ready: Sequence[EmbeddedChunk], done: int) -> bool:
            return await self._work.write(work, embedder, ready, len(chunks), done, LEASE)

        if not await self._embedded(work, embedder, text, chunks, write):
            return None
        stored = await self._work.commit(work, embedder, len(chunks), len(text))
        if stored is not None:
            self._events.document_stored(len(chunks))
        return stored

    async def embed_anew(self, work: Work, embedder: EmbedderIdentity, text: str) -> bool:
        """Embeds a revision that serves by a further embedder; false where it is void, or another's duty by now."""
        chunks = await self._cut(text)

        async def write(ready: Sequence[EmbeddedChunk], _: int) -> bool:
            return await self._work.rewrite(work, embedder, ready, len(chunks))

        return await self._embedded(work, embedder, text, chunks, write)

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
    ) -> bool:
        """Whether all chunks are written, those that were already with them."""
        await self._index.ensure(embedder)
        placed = list(zip(chunks, await asyncio.to_thread(spans, text, chunks, self._neighbours), strict=True))
        missing = [placed[number] for number in await self._missing(work, embedder, chunks)]
        for start in range(0, max(len(missing), 1), self._batch):
            part = missing[start : start + self._batch]
            vectors = await self._vectors(work, [chunk for chunk, _ in part], embedder)
            ready = [
                EmbeddedChunk(chunk, vector, span, reach)
                for (chunk, (span, reach)), vector in zip(part, vectors, strict=True)
            ]
            if not await write(ready, len(chunks) - len(missing) + start):
                return False
            self._events.chunks_embedded(len(ready))
        return True

    async def _missing(self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[Chunk]) -> list[int]:
        """Numbers of chunks that are not written. What was cut otherwise, by other settings, does not count."""
        written = await self._work.written(work, embedder)
        await self._work.trim(work, embedder, range(len(chunks), written.total))
        return [one.number for one in chunks if written.spans.get(one.number) != (one.start, one.end)]

    async def _vectors(self, work: Work, chunks: Sequence[Chunk], embedder: EmbedderIdentity) -> Sequence[Vector]:
        """By `embedder`, or not at all: who embeds may change at any time."""
        texts = [self._embedded_text.of(work.facts, chunk) for chunk in chunks]
        tenant = work.facts.tenant
        embeddings = await self._patiently(lambda: self._embedder.embed(texts, tenant=tenant)) if texts else []
        if await self._patiently(self._embedder.identity) != embedder:
            raise ServiceUnavailable("Another model embeds now: the document is begun anew.", retry_after=1)
        return [embedding.vector for embedding in embeddings]

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until the embedder answers: nobody waits for it."""
        pause = 0.2
        while True:
            try:
                return await call()
            except EmbeddingUnavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                pause = min(2 * pause, LONGEST_PAUSE)

    @asynccontextmanager
    async def _held(self, work: Work) -> AsyncIterator[None]:
        """Renews the lease while the block runs."""
        keeper = asyncio.create_task(self._keep(work), name="ingestion_keeper")
        try:
            yield
        finally:
            await cancelled([keeper])

    async def _keep(self, work: Work) -> None:
        while True:
            await asyncio.sleep(BEAT)
            with suppress(StoreUnavailable):
                if not await self._work.renew(work, LEASE):
                    return  # what is written from here on is refused
