"""The chunks of documents embedded in batches: sized by what was measured, halved where a text cannot be embedded.

What is embedded of a chunk: its text under its document's title and headings, never more than the model reads. Pure.

A model cuts off silently what is too long, at its end: of the passage itself. So it is the title and the headings that
are shortened.
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
from api.ports.documents import Chunk, DocumentFacts
from api.ports.models import Embedder
from api.values import BatchSize, Embedding

PAUSES: Final = (0.2, 0.4)
"""Seconds before a batch is tried again, at random about as long. After the last of them the document waits."""


@dataclass(frozen=True, slots=True)
class NotEmbedded:
    """Stands in the place of an embedding: `reason` says why there is none, now or later."""

    reason: str


class ChunkEmbedding:
    """For one worker. `size`: how many texts a call takes at first, and at most."""

    def __init__(self, embedder: Embedder, size: BatchSize, clock: Callable[[], float] = time.monotonic) -> None:
        self._embedder = embedder
        self._size = size
        self._clock = clock

    @property
    def batch(self) -> int:
        """How many texts the next call had best have."""
        return self._size.texts

    async def embed(self, texts: Sequence[str], tenant: str) -> list[Embedding | NotEmbedded]:
        """One for each text, in order. Raises `EmbeddingUnavailable` where the embedder fails, after a few tries."""
        return await self._embedded(texts, tenant, _Tries()) if texts else []

    async def _embedded(self, texts: Sequence[str], tenant: str, tries: _Tries) -> list[Embedding | NotEmbedded]:
        try:
            return list(await self._measured(texts, tenant))
        except TextNotEmbedded:
            if len(texts) == 1:
                return [await self._confirmed(texts[0], tenant)]
        except EmbeddingUnavailable as error:
            self._size = self._size.halved()
            await tries.pause(error)
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
        """Asked for once more: a backend that fails now and then is not to cost a document its text."""
        try:
            (embedding,) = await self._embedder.embed([text], tenant=tenant)
        except TextNotEmbedded as error:
            return NotEmbedded(str(error))
        return embedding


class _Tries:
    """How often the embedder may fail in one batch."""

    def __init__(self) -> None:
        self._pauses = list(PAUSES)

    async def pause(self, error: EmbeddingUnavailable) -> None:
        """Before the next try. Raises `error` where there is none."""
        if not self._pauses:
            raise error
        await asyncio.sleep(self._pauses.pop(0) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


PLACE: Final = 64
"""Tokens of title and headings together, at most: past that a passage would be found by them alone."""


class EmbeddedText:
    """`count` says how many tokens a text is; `limit`: what the model reads at once, None where that is not known."""

    def __init__(self, count: Callable[[str], int], limit: int | None) -> None:
        self._count = count
        self._limit = limit

    def of(self, facts: DocumentFacts, chunk: Chunk) -> str:
        """Title, headings and text, a line each."""
        room = PLACE if self._limit is None else min(PLACE, self._limit - self._count(chunk.text))
        title, heading = self._place(facts.title, chunk.heading, max(room, 0))
        return in_context(title, heading, chunk.text)

    def _place(self, title: str, heading: str, room: int) -> tuple[str, str]:
        """Both where they fit; else the beginning of the title, and of the headings the innermost."""
        if self._count(title) + self._count(heading) <= room:
            return title, heading
        least = min(self._count(heading), room // 2)
        title = self._begin(title, room - least)
        rest = room - self._count(title)
        while self._count(heading) > rest and " > " in heading:
            heading = heading.partition(" > ")[2]
        return title, self._begin(heading, rest)

    def _begin(self, text: str, tokens: int) -> str:
        """As much of its beginning as is at most so many tokens."""
        if self._count(text) <= tokens:
            return text
        # Half a word may be more tokens than all of it: what the bisection finds is checked, and shortened.
        end = bisect_right(range(1, len(text) + 1), tokens, key=lambda size: self._count(text[:size]))
        while end and self._count(text[:end]) > tokens:
            end -= 1
        return text[:end].rstrip()
