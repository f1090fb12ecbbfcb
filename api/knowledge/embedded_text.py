"""What is embedded of a chunk: its text under its document's title and headings, never more than the model reads. Pure.

A model cuts off silently what is too long, at its end: of the passage itself. So it is the title and the headings that
are shortened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from api.knowledge.chunking import in_context
from api.ports.documents import Chunk, DocumentFacts

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
