"""Text into chunks: by its structure, of a size in tokens, with an overlap. Pure.

The cutting is semantic-text-splitter's: at headings, then blocks, paragraphs, sentences, words, whichever is the
coarsest that fits.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from semantic_text_splitter import MarkdownSplitter

from api.knowledge.plain_text import FENCED, heading_words
from api.ports.documents import Chunk

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS: Final = 3.2
"""Of a token of English, at least, as WordPiece counts."""
SECTION: Final = 20_000
"""Characters that are cut in one go."""
LONGEST_HEADING: Final = 200
_HEADING: Final = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+)$", re.MULTILINE)
_WORD: Final = re.compile(r"\w")

Span = tuple[int, int]


def estimated_tokens(text: str) -> int:
    """Where the embedder's tokenizer is not at hand: more than most make of English."""
    return round(len(text) / CHARACTERS)


class Chunker:
    """`count` says how many tokens a text is; chunks have at most `size` and share about `overlap` with the next.

    With the `tokenizer` itself, where there is one, cutting does not hold the interpreter: the event loop goes on.
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
        """In order, numbered from 0. What holds no word, or headings alone, is none: the next says its headings."""
        return numbered(text, [cut for start, section in sections(text) for cut in self.cut(start, section)])

    def cut(self, start: int, section: str) -> list[tuple[int, str]]:
        """The chunks of a section that begins at `start`, each with where it begins."""
        return [(start + at, part) for at, part in self._splitter.chunk_indices(section)]


def sections(text: str) -> list[tuple[int, str]]:
    """A long text in parts that can be cut one by one, each with where it begins: at a blank line, if there is one."""
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
    """As chunks, under their headings."""
    headings = _headings(text)
    kept = [cut for cut in cuts if _WORD.search(_HEADING.sub("", cut[1]))]
    # A text of headings alone is found by them.
    kept = kept or [cut for cut in cuts if _WORD.search(cut[1])]
    return [
        Chunk(number, part, _path(headings, start), start, start + len(part))
        for number, (start, part) in enumerate(kept)
    ]


def spans(text: str, chunks: Sequence[Chunk], neighbours: int = 1) -> list[tuple[Span, Span]]:
    """Of each chunk its bytes in the text's UTF-8, and those of it with `neighbours` chunks to either side."""
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
    """A chunk as a model is to read it: its place in the document says what it is about."""
    return "\n".join(part for part in (title, heading, text) if part)


def _headings(text: str) -> list[tuple[int, str]]:
    """Where each heading ends, and its path from there on; not of what looks like one within code."""
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
    """The headings over a chunk, with the one that it begins with."""
    place = bisect_right(headings, start, key=lambda heading: heading[0]) - 1
    return headings[place][1] if place >= 0 else ""
