"""Splits text into chunks by its structure, with a size in tokens and an overlap. Pure.

semantic-text-splitter cuts at headings, then blocks, paragraphs, sentences and words, at the coarsest level that fits.
A tokenizer reads a long run without spaces (Thai, a hex dump) as one unknown token. Such a token counts by its letters
here, so that a chunk of them is not larger than others.

A chunk that continues a table begins with the table's header, which is not part of its span.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from api.knowledge.markdown import FENCED, heading_words
from api.knowledge.plain_text import PAGE
from api.ports.document_store import Chunk

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter
    from tokenizers import Tokenizer

CHARACTERS: Final = 3.2
"""Characters of an English token, at least, as WordPiece counts."""
SECTION: Final = 20_000
"""Characters split at a time."""
LONGEST_HEADING: Final = 200
_HEADING: Final = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+)$", re.MULTILINE)
_FENCE: Final = re.compile(r"^ {0,3}(?:`{3,}|~{3,}).*$", re.MULTILINE)
_TURN: Final = re.compile(rf"{PAGE}(?<=[^{PAGE}]{{40}}{PAGE})(?!\s*[a-zß-öø-ÿ])")
"""The turn of a page, unless the page is nearly empty or a sentence runs on: such pages share chunks."""
_CODE: Final = re.compile(r"\n```+[a-z]+ linenums=\"\d+\"$", re.MULTILINE)
"""The line above a part of source code, and its first line."""
_ABOVE: Final = re.compile(r"#{1,6} .+\n\n")
_LEVELS: Final = 6
"""Headings above a part of source code, at most."""
_WORD: Final = re.compile(r"\w")
_RULE: Final = re.compile(r"[ \t]*\|?[ \t:-]*-[ \t:|-]*")
"""The line between a table's header and its rows."""
UNKNOWN: Final = ("[UNK]", "<unk>")
"""The unknown token of WordPiece and SentencePiece vocabularies."""

Span = tuple[int, int]


class Cut(NamedTuple):
    """A piece of a text and its start. `header`: the table's, if the piece begins among its rows."""

    start: int
    text: str
    header: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows `start` to `end` of a Markdown table, and its header with the line below."""

    start: int
    end: int
    header: str


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
        self._size = size
        self._overlap = overlap
        self._tokenizer = tokenizer
        self._count = count if tokenizer is None else TokenCounter(tokenizer)

    @cached_property
    def _splitter(self) -> MarkdownSplitter:
        """Made for the first document: it copies the tokenizer, and most workers read no documents."""
        from semantic_text_splitter import MarkdownSplitter

        if self._tokenizer is None:
            return self._strict
        return MarkdownSplitter.from_huggingface_tokenizer(self._tokenizer, self._size, self._overlap)

    @cached_property
    def _strict(self) -> MarkdownSplitter:
        from semantic_text_splitter import MarkdownSplitter

        return MarkdownSplitter.from_callback(self._count, self._size, self._overlap)

    def chunks(self, text: str) -> list[Chunk]:
        """The chunks in order, numbered from 0.

        Skips chunks without words or with headings only; the next names its headings.
        """
        tables = self.tables(text)
        return numbered(text, [cut for start, section in sections(text) for cut in self.cut(start, section, tables)])

    def tables(self, text: str) -> list[Table]:
        """The tables of a text, in order, but for those whose header leaves little room for rows."""
        return [one for one in tables(text) if self._count(one.header) <= self._size // 2]

    def cut(self, start: int, section: str, tables: Sequence[Table] = ()) -> list[Cut]:
        """The chunks of a section that begins at `start`."""
        pieces = self._splitter.chunk_indices(section.replace(PAGE, "\n"))
        return [
            cut
            for at, part in pieces
            for more, piece in ([(0, part)] if self._count(part) <= self._size else self._strict.chunk_indices(part))
            for cut in self._with_header(start + at + more, piece, tables)
        ]

    def _with_header(self, start: int, piece: str, tables: Sequence[Table]) -> list[Cut]:
        """The piece with the header of the table in which it begins, cut between lines where both are too large."""
        place = bisect_right(tables, start, key=lambda table: table.start) - 1
        if place < 0 or start >= tables[place].end:
            return [Cut(start, piece)]
        header = tables[place].header
        if self._count(f"{header}\n{piece}") <= self._size:
            return [Cut(start, piece, header)]
        middle = piece.find("\n", len(piece) // 2) + 1 or piece.rfind("\n") + 1
        if not 0 < middle < len(piece):
            return [Cut(start, piece)]
        first, second = piece[:middle], piece[middle:]
        halves = [(start, first.rstrip("\n")), (start + middle, second)]
        return [cut for at, half in halves for cut in self._with_header(at, half, tables)]


class TokenCounter:
    """Counts tokens with a tokenizer, and unknown ones by their letters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unknown = frozenset(map(tokenizer.token_to_id, UNKNOWN)) - {None}

    def __call__(self, text: str) -> int:
        """Linear in the text's length."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._unknown.isdisjoint(encoding.ids):
            return len(encoding.ids)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return sum(max(1, round((end - at) / CHARACTERS)) if one in self._unknown else 1 for one, (at, end) in pairs)


def tables(text: str) -> list[Table]:
    """The Markdown tables of a text, in order."""
    found: list[Table] = []
    before, at, header, start = "", 0, "", 0
    for line in text.splitlines(keepends=True):
        is_row = line.lstrip(" \t").startswith("|")
        if header and not is_row:
            found.append(Table(start, at, header))
            header = ""
        elif not header and is_row and before.lstrip(" \t").startswith("|") and _RULE.fullmatch(line.rstrip()):
            header, start = f"{before.strip()}\n{line.strip()}", at + len(line)
        before, at = line, at + len(line)
    return [*found, Table(start, at, header)] if header else found


def sections(text: str) -> list[tuple[int, str]]:
    """Parts of a text with their starts: pages, parts of code, and of long texts, cut at blank lines where possible."""
    turns = {found.start() for found in _TURN.finditer(text)}.union(_parts_of_code(text)) - {0}
    return [part for start, end in pairwise([0, *sorted(turns), len(text)]) for part in _sections(text, start, end)]


def _parts_of_code(text: str) -> Iterator[int]:
    """Where the parts of source code begin, with their headings."""
    for found in _CODE.finditer(f"\n{text}"):
        start = found.start()  # as the text begins one character later there
        for _ in range(_LEVELS):
            line = text.rfind("\n", 0, max(start - 2, 0)) + 1
            if not _ABOVE.fullmatch(text, line, start):
                break
            start = line
        yield start


def _sections(text: str, start: int, end: int) -> list[tuple[int, str]]:
    parts = []
    while end - start > SECTION:
        cut = next(
            (
                at
                for mark in ("\n# ", "\n## ", "\n\n", "\n", " ")
                if (at := text.rfind(mark, start + SECTION // 2, start + SECTION)) > 0
            ),
            start + SECTION,
        )
        parts.append((start, text[start:cut]))
        start = cut
    return [*parts, (start, text[start:end])]


def numbered(text: str, cuts: Iterable[Cut | tuple[int, str]]) -> list[Chunk]:
    """The pieces as chunks, under their headings and on their pages."""
    headings, pages = _headings(text), [found.start() for found in re.finditer(PAGE, text)]
    worded = [cut for cut in (Cut(*cut) for cut in cuts) if _WORD.search(_FENCE.sub("", cut.text))]
    # A text with nothing but headings is searchable by them.
    starts = [start for start, _ in headings]
    kept = [cut for cut in worded if _WORD.search(_FENCE.sub("", _without_headings(cut, starts)))] or worded
    return [
        Chunk(
            number,
            f"{cut.header}\n{cut.text}" if cut.header else cut.text,
            _path(headings, cut.start + _body(cut.text)),
            cut.start,
            cut.start + len(cut.text),
            bisect_right(pages, cut.start) or None,
        )
        for number, cut in enumerate(kept)
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


def _without_headings(cut: Cut, starts: Sequence[int]) -> str:
    """The text of a piece without the lines that begin at `starts`, in order. A `#` in code is a comment."""
    parts, at = [], 0
    first = bisect_left(starts, cut.start - 3)  # the piece begins behind the indent
    for start in starts[first : bisect_left(starts, cut.start + len(cut.text))]:
        parts.append(cut.text[at : max(start - cut.start, 0)])
        end = cut.text.find("\n", max(start - cut.start, 0))
        at = end if end >= 0 else len(cut.text)
    return "".join((*parts, cut.text[at:]))


def _body(piece: str) -> int:
    """Where the text of a piece begins, below the headings that it begins with; 0 if it has nothing else."""
    at = 0
    for line in piece.splitlines(keepends=True):
        if line.strip() and not _HEADING.match(line):
            return at
        at += len(line)
    return 0


def _path(headings: Sequence[tuple[int, str]], start: int) -> str:
    """The headings above a place in the text."""
    place = bisect_right(headings, start, key=lambda heading: heading[0]) - 1
    return headings[place][1] if place >= 0 else ""
