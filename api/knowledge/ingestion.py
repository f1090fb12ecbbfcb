"""Carries out one change of the knowledge base: read, cut, embed, put into service, tell the cache.

Each step can be repeated: a worker that dies is succeeded by another, which goes on where chunks are missing. What is
asked for meanwhile makes the work void, and nothing of it serves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from api.background import cancelled
from api.errors import EmbeddingUnavailable, PayloadTooLarge, StoreUnavailable, UnreadableDocument
from api.knowledge.chunking import Chunker, numbered, sections, spans
from api.knowledge.outdating import Outdating
from api.knowledge.parsing import Parser
from api.model import EmbedderIdentity
from api.ports.documents import Chunk, DocumentFacts, DocumentWork, EmbeddedChunk, PassageIndex, Work
from api.ports.models import Embedder

T = TypeVar("T")
LEASE: Final = 10.0
"""Seconds. A worker that dies is succeeded by another after so long."""
BEAT: Final = 2.0
ATTEMPTS: Final = 5
"""Workers that may die of a document before it is given up."""
LONGEST_PAUSE: Final = 5.0


class IngestionEvents(Protocol):
    """Who is told."""

    def document_stored(self, chunks: int) -> None: ...

    def document_failed(self, document: str, error: str) -> None: ...

    def chunks_embedded(self, count: int) -> None: ...


@dataclass(slots=True)
class _UnderWay:
    """A change that this worker is carrying out."""

    revision: int
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
        self._embedder = embedder
        self._outdating = outdating
        self._events = events
        self._batch = batch
        self._neighbours = neighbours
        self._under_way: dict[str, _UnderWay] = {}

    def is_at(self, document: str) -> bool:
        """Whether this worker is at work on a document now."""
        return document in self._under_way

    async def carry_out(self, document: str) -> bool:
        """All that is left to do of a document; false where there is nothing, or another is at it.

        Where that is this worker itself, its end is awaited: a lease keeps off only the others. Raises
        `StoreUnavailable`: what is done is kept, and the rest is left.
        """
        known = self._under_way.get(document)
        work = await self._work.take(document, LEASE)
        if work is None:
            return False
        for one in (known, self._under_way.get(document)):
            if one is not None and one.revision == work.revision:
                await one.ended.wait()
                return False
        one = self._under_way[document] = _UnderWay(work.revision)
        try:
            async with self._held(work):
                await self._carried_out(work)
        finally:
            one.ended.set()
            if self._under_way.get(document) is one:
                del self._under_way[document]
        return True

    async def _carried_out(self, work: Work) -> None:
        try:
            await self._to_its_end(work)
        except (StoreUnavailable, asyncio.CancelledError):
            with suppress(StoreUnavailable):
                await self._work.release(work)
            raise

    async def is_waiting(self, document: str) -> bool:
        """Whether there is something left to do of a document. Raises `StoreUnavailable`."""
        return await self._work.exists(document)

    async def _to_its_end(self, work: Work) -> None:
        if work.phase == "store" and work.attempts > ATTEMPTS:
            await self._fail(work, f"given up after {ATTEMPTS} attempts")
            return
        if work.owes:
            await self._outdating.changed(work)
            await self._work.told(work)
        if work.phase == "store":
            try:
                if not await self._stored(work):
                    return
            except (UnreadableDocument, PayloadTooLarge) as error:
                await self._fail(work, error.detail)
                return
            renewed = await self._work.take(work.id, LEASE)
            if renewed is None or renewed.revision != work.revision:
                return
            work = renewed
        await self._outdating.told_of(work)
        await self._work.finish(work)

    async def _stored(self, work: Work) -> bool:
        """Whether the revision serves now; it does not where the work has become void."""
        text = await self._text(work)
        chunks = await self._cut(text)
        if not chunks:
            raise UnreadableDocument("There is no text in it.")
        embedder = await self._patiently(self._embedder.identity)
        if not await self._embedded(work, embedder, text, chunks):
            return False
        if not await self._work.commit(work, embedder, len(chunks), len(text)):
            return False
        self._events.document_stored(len(chunks))
        return True

    async def embed_anew(self, work: Work, embedder: EmbedderIdentity, text: str) -> int | None:
        """Embeds a revision that serves by a further embedder: the number of chunks, None where it is void."""
        chunks = await self._cut(text)
        return len(chunks) if await self._embedded(work, embedder, text, chunks, lease=0) else None

    async def _cut(self, text: str) -> list[Chunk]:
        """Section by section: whoever stops the worker waits for one of them at most."""
        cuts: list[tuple[int, str]] = []
        for start, section in sections(text):
            cuts += await asyncio.to_thread(self._chunker.cut, start, section)
        return await asyncio.to_thread(numbered, text, cuts)

    async def _text(self, work: Work) -> str:
        content = await self._work.draft(work)
        if content is None:
            raise UnreadableDocument("What was given is lost.")
        if work.media_type is None:
            return content.decode()
        parsed = await self._parser.parse(content, work.media_type)
        await self._work.settle_text(work, parsed.text.encode())
        return parsed.text

    async def _embedded(
        self, work: Work, embedder: EmbedderIdentity, text: str, chunks: Sequence[Chunk], lease: float = LEASE
    ) -> bool:
        """Whether all chunks are written, those that were already with them."""
        await self._index.ensure(embedder)
        placed = list(zip(chunks, await asyncio.to_thread(spans, text, chunks, self._neighbours), strict=True))
        written = await self._work.written(work, embedder)
        missing = [one for one in placed if one[0].number not in written]
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            texts = [embedded_text(work.facts, chunk) for chunk, _ in part]
            vectors = await self._patiently(lambda: self._embedder.embed(texts))  # noqa: B023 - awaited here
            ready = [
                EmbeddedChunk(chunk, vector, span, reach)
                for (chunk, (span, reach)), vector in zip(part, vectors, strict=True)
            ]
            if not await self._work.write(work, embedder, ready, len(chunks), lease):
                return False
            self._events.chunks_embedded(len(ready))
        return True

    async def _fail(self, work: Work, error: str) -> None:
        self._events.document_failed(work.id, error)
        await self._work.fail(work, error)

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
                await self._work.take(work.id, LEASE)


def embedded_text(facts: DocumentFacts, chunk: Chunk) -> str:
    """What is embedded of a chunk: its place in the document says what it is about."""
    return "\n".join(part for part in (facts.title, chunk.heading, chunk.text) if part)
