"""Embeds the chunks of documents in batches.

Batch sizes follow the measured speed; a batch with a text that cannot be embedded is halved. A chunk is embedded with
its document's title and its headings. Models silently truncate long input at its end, which would cut the passage
itself, so the title and the headings are shortened to fit.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from api.errors import EmbeddingUnavailable, TextNotEmbedded
from api.knowledge.chunking import in_context
from api.ports.document_store import Chunk, DocumentFacts
from api.ports.inference import Embedder
from api.values import BatchSize, Embedding

PAUSES: Final = (0.2, 0.4)
"""Seconds before each retry of a batch, randomized. After the last retry the document is delayed."""


@dataclass(frozen=True, slots=True)
class NotEmbedded:
    """A chunk without an embedding. `reason` says why."""

    reason: str


class ChunkEmbedding:
    """One worker's batches. `size`: the first batch size and the largest."""

    def __init__(self, embedder: Embedder, size: BatchSize, clock: Callable[[], float] = time.monotonic) -> None:
        self._embedder = embedder
        self._size = size
        self._clock = clock

    @property
    def batch(self) -> int:
        """The best size of the next batch."""
        return self._size.texts

    async def embed(self, texts: Sequence[str], tenant: str) -> list[Embedding | NotEmbedded]:
        """One result per text, in order. Raises `EmbeddingUnavailable` if the embedder fails several times."""
        return await self._embedded(texts, tenant, _Tries()) if texts else []

    async def _embedded(self, texts: Sequence[str], tenant: str, tries: _Tries) -> list[Embedding | NotEmbedded]:
        try:
            return list(await self._measured(texts, tenant))
        except TextNotEmbedded:
            if len(texts) == 1:
                return [await self._confirmed(texts[0], tenant)]
        except EmbeddingUnavailable:
            self._size = self._size.halved()
            if tries.are_over:
                raise
            await tries.pause()
            if len(texts) == 1:
                return await self._embedded(texts, tenant, tries)
        middle = len(texts) // 2
        return [
            *await self._embedded(texts[:middle], tenant, tries),
            *await self._embedded(texts[middle:], tenant, tries),
        ]

    async def _measured(self, texts: Sequence[str], tenant: str) -> list[Embedding]:
        began = self._clock()
        found = await self._embedder.embed(texts, tenant=tenant)
        self._size = self._size.after(len(texts), self._clock() - began)
        return found

    async def _confirmed(self, text: str, tenant: str) -> Embedding | NotEmbedded:
        """Retries once more: a backend that fails now and then must not cost a document its text."""
        try:
            (embedding,) = await self._embedder.embed([text], tenant=tenant)
        except TextNotEmbedded as error:
            return NotEmbedded(str(error))
        return embedding


class _Tries:
    """Counts down the retries of one batch."""

    def __init__(self) -> None:
        self._pauses = list(PAUSES)

    @property
    def are_over(self) -> bool:
        return not self._pauses

    async def pause(self) -> None:
        """Waits before the next try."""
        await asyncio.sleep(self._pauses.pop(0) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


PLACE: Final = 64
"""Most tokens of title and headings together. With more, search would find a passage by them alone."""


class EmbeddedText:
    """`count`: the number of tokens of a text. `limit`: the tokens that the model reads at once; None if unknown."""

    def __init__(self, count: Callable[[str], int], limit: int | None) -> None:
        self._count = count
        self._limit = limit

    def of(self, facts: DocumentFacts, chunk: Chunk) -> str:
        """Title, headings and text, each on a line."""
        room = PLACE if self._limit is None else min(PLACE, self._limit - self._count(chunk.text))
        title, heading = self._place(facts.title, chunk.heading, max(room, 0))
        return in_context(title, heading, chunk.text)

    def tokens(self, facts: DocumentFacts, chunk: Chunk) -> int:
        """The number of tokens that are embedded."""
        return self._count(self.of(facts, chunk))

    def _place(self, title: str, heading: str, room: int) -> tuple[str, str]:
        """Title and headings if they fit; else the start of the title, and the innermost headings."""
        if self._count(title) + self._count(heading) <= room:
            return title, heading
        least = min(self._count(heading), room // 2)
        title = self._begin(title, room - least)
        rest = room - self._count(title)
        while self._count(heading) > rest and " > " in heading:
            heading = heading.partition(" > ")[2]
        return title, self._begin(heading, rest)

    def _begin(self, text: str, tokens: int) -> str:
        """The start of the text, of at most that many tokens."""
        if self._count(text) <= tokens:
            return text
        # Half a word may have more tokens than the whole word, so the result of the bisection is checked and shortened.
        end = bisect_right(range(1, len(text) + 1), tokens, key=lambda size: self._count(text[:size]))
        while end and self._count(text[:end]) > tokens:
            end -= 1
        return text[:end].rstrip()
