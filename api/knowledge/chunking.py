"""Splits text into chunks by its structure, with a size in tokens and an overlap. Pure.

semantic-text-splitter cuts at headings, then blocks, paragraphs, sentences and words, at the coarsest level that fits.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from semantic_text_splitter import MarkdownSplitter

from api.knowledge.markdown import FENCED, heading_words
from api.ports.document_store import Chunk

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS: Final = 3.2
"""Characters of an English token, at least, as WordPiece counts."""
SECTION: Final = 20_000
"""Characters split at a time."""
LONGEST_HEADING: Final = 200
_HEADING: Final = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+)$", re.MULTILINE)
_WORD: Final = re.compile(r"\w")

Span = tuple[int, int]


def estimated_tokens(text: str) -> int:
    """An estimate without the embedder's tokenizer, above what most tokenizers count for English."""
    return round(len(text) / CHARACTERS)


class Chunker:
    """Chunks have at most `size` tokens, as `count` counts them, and share about `overlap` with the next.

    Splitting with the `tokenizer` itself, if there is one, releases the GIL, so the event loop keeps running.
    """

    def __init__(
        self, count: Callable[[str], int], size: int, overlap: int, tokenizer: Tokenizer | None = None
    ) -> None:
        self._splitter = (
            MarkdownSplitter.from_callback(count, size, overlap)
            if tokenizer is None
            else MarkdownSplitter.from_huggingface_tokenizer(tokenizer, size, overlap)
        )

    def chunks(self, text: str) -> list[Chunk]:
        """The chunks in order, numbered from 0.

        Skips chunks without words or with headings only; the next names its headings.
        """
        return numbered(text, [cut for start, section in sections(text) for cut in self.cut(start, section)])

    def cut(self, start: int, section: str) -> list[tuple[int, str]]:
        """The chunks of a section that begins at `start`, each with its start."""
        return [(start + at, part) for at, part in self._splitter.chunk_indices(section)]


def sections(text: str) -> list[tuple[int, str]]:
    """Parts of a long text with their starts, cut at blank lines where possible."""
    parts, start = [], 0
    while len(text) - start > SECTION:
        end = next(
            (
                at
                for mark in ("\n# ", "\n## ", "\n\n", "\n", " ")
                if (at := text.rfind(mark, start + SECTION // 2, start + SECTION)) > 0
            ),
            start + SECTION,
        )
        parts.append((start, text[start:end]))
        start = end
    return [*parts, (start, text[start:])]


def numbered(text: str, cuts: Sequence[tuple[int, str]]) -> list[Chunk]:
    """The pieces as chunks, under their headings."""
    headings = _headings(text)
    kept = [cut for cut in cuts if _WORD.search(_HEADING.sub("", cut[1]))]
    # A text with nothing but headings is searchable by them.
    kept = kept or [cut for cut in cuts if _WORD.search(cut[1])]
    return [
        Chunk(number, part, _path(headings, start), start, start + len(part))
        for number, (start, part) in enumerate(kept)
    ]


def spans(text: str, chunks: Sequence[Chunk], neighbours: int = 1) -> list[tuple[Span, Span]]:
    """Each chunk's byte range in the UTF-8 text, and the range with `neighbours` chunks on either side."""
    at = _byte_offsets(text, sorted({offset for chunk in chunks for offset in (chunk.start, chunk.end)}))
    found = []
    for place, chunk in enumerate(chunks):
        first = chunks[max(place - neighbours, 0)]
        last = chunks[min(place + neighbours, len(chunks) - 1)]
        found.append(((at[chunk.start], at[chunk.end]), (at[first.start], at[last.end])))
    return found


def _byte_offsets(text: str, offsets: Sequence[int]) -> dict[int, int]:
    found, before, size = {}, 0, 0
    for offset in offsets:
        size += len(text[before:offset].encode())
        before = offset
        found[offset] = size
    return found


def in_context(title: str, heading: str, text: str) -> str:
    """A chunk as models read it: its headings say what it is about."""
    return "\n".join(part for part in (title, heading, text) if part)


def _headings(text: str) -> list[tuple[int, str]]:
    """Returns the end of each heading, and the heading path from there on. Ignores lookalikes in code."""
    code = [found.span() for found in FENCED.finditer(text)]
    starts = [start for start, _ in code]
    paths: list[tuple[int, str]] = []
    above: list[tuple[int, str]] = []
    for found in _HEADING.finditer(text):
        block = bisect_right(starts, found.start()) - 1
        if block >= 0 and found.start() < code[block][1]:
            continue
        level = len(found[1])
        above = [*((of, words) for of, words in above if of < level), (level, heading_words(found[2]))]
        paths.append((found.start(), " > ".join(words for _, words in above)[:LONGEST_HEADING]))
    return paths


def _path(headings: Sequence[tuple[int, str]], start: int) -> str:
    """The headings above a chunk, including one it begins with."""
    place = bisect_right(headings, start, key=lambda heading: heading[0]) - 1
    return headings[place][1] if place >= 0 else ""
