"""Decodes text files, tables and source code, and normalizes text. Pure."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from typing import Final

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge import markdown
from api.knowledge.kinds import CODE, MARKDOWN, TSV
from api.knowledge.repair import repaired, with_plain_letters
from api.unicode_text import nfc

PAGE: Final = "\f"
"""Begins each page of a stored text, where the file has pages. No other text has it."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from a file. `text` is Markdown. `title` and `pages` if the file has them.

    `tags`: those in a file's front matter. `warnings`: sentences about what was left out, such as pages without text.
    `page_starts`: where each page begins in `text`, if the reader knows; `joined` finds them. `language`: the one that
    the file declares, in BCP 47.
    """

    text: str
    title: str | None = None
    pages: int | None = None
    tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    page_starts: tuple[int, ...] = ()
    language: str | None = None

    @property
    def marked_text(self) -> str:
        """The text as it is stored: with `PAGE` before each page."""
        ends = [*self.page_starts[1:], len(self.text)] if self.page_starts else []
        pages = [self.text[start:end] for start, end in zip(self.page_starts, ends, strict=True)]
        return "".join(PAGE + page for page in pages) if pages else self.text


def joined(pages: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The text of a file by its pages, with a blank line between them, and where each of them begins."""
    parts: list[str] = []
    starts: list[int] = []
    size = 0
    for page in map(tidied, pages):
        if page and size:
            parts.append("\n\n")
            size += 2
        starts.append(size)
        parts.append(page)
        size += len(page)
    return "".join(parts), tuple(starts)


_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"))
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_BLANK: Final = re.compile(r"\n[ \t]*+(?:\n[ \t]*+){2,}+")
GUESSED_FROM: Final = 256 * 1024
"""Bytes from which the encoding is guessed."""
_BEYOND_ASCII: Final = bytes(range(0x80, 0x100))
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
DELIMITERS: Final = ",;\t|"
_LATIN: Final = ("cp1252", "cp1250", "cp1257", "cp1254")
"""Encodings of scripts whose letters are mostly ASCII. The first of equals wins, since a few letters tell little."""


def read_text(data: bytes, media_type: str) -> Parsed:
    """A plain file, with its title if it is Markdown. Source code is a code block. Raises `UnreadableDocument`."""
    text = tidied(decoded(data))
    if media_type == CODE:
        return Parsed(in_a_fence(text))
    if media_type == MARKDOWN:
        found = markdown.read(text)
        return Parsed(with_plain_letters(found.text).strip(), found.title, tags=found.tags, language=found.language)
    return Parsed(repaired(text))


def in_a_fence(text: str, about: str = "") -> str:
    """A code block, in which `#` begins no heading. `about`: the words behind its first marks."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{about}\n{text}\n{fence}"


def read_table(data: bytes, media_type: str, characters: int) -> Parsed:
    """A table of comma- or tab-separated values as Markdown. The first row is its header.

    Raises `UnreadableDocument`, `PayloadTooLarge`.
    """
    text = tidied(decoded(data))
    delimiter = "\t" if media_type == TSV else max(DELIMITERS, key=text.partition("\n")[0].count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the module's limit of 131,072 refuses long cells
    rows = [row for row in csv.reader(StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    width = max(map(len, rows), default=0)
    if 3 * width * len(rows) > characters:  # checked first: one long row makes all others as long
        raise too_long(characters)
    lines = ["| " + " | ".join(map(_cell, (*row, *[""] * (width - len(row))))) + " |" for row in rows]
    lines[1:1] = ["|" + " --- |" * width] if rows else []
    return Parsed("\n".join(lines))


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def decoded(data: bytes, said: str | None = None) -> str:
    """Decodes by the byte order mark, the declared encoding, UTF-8, or the most likely encoding, in this order.

    Raises `UnreadableDocument`.
    """
    marks = (*_MARKS, (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = next((name for mark, name in marks if data.startswith(mark)), None)
    if encoding is None and said is not None:
        with suppress(ValueError, LookupError):  # a page may declare `charset=undefined`, and Python has such a codec
            return data.decode(said)
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise UnreadableDocument(f"Its mark says {encoding}, and it is not: {error.reason}.") from None
        if _is_mostly_utf8(data):
            raise UnreadableDocument(f"It is UTF-8 but for byte {error.start}: convert all of it to UTF-8.") from None
    guess = _guess(data[:GUESSED_FROM])
    if guess is None:
        raise UnreadableDocument("Its encoding is not UTF-8, and cannot be detected. Convert it to UTF-8.")
    try:
        return data.decode(guess)
    except (UnicodeDecodeError, LookupError):
        raise UnreadableDocument(f"Its encoding seems to be {guess}, but is not. Convert it to UTF-8.") from None


def _is_mostly_utf8(data: bytes) -> bool:
    """Returns whether most non-ASCII bytes are UTF-8. Other encodings hardly ever look like it by chance."""
    valid = data.decode("utf-8", "ignore")
    characters = len(valid) - len(data.translate(None, _BEYOND_ASCII))
    return characters >= len(data) - len(valid.encode())


def _guess(data: bytes) -> str | None:
    """The most likely encoding; None if none is likely.

    Isolated non-ASCII letters usually mean a Latin script, where a general guess would find Chinese. In Shift-JIS and
    in UTF-16 without a mark they may be isolated too, so those are tried if no Latin encoding fits.
    """
    from charset_normalizer import from_bytes  # 2 MB that few documents need

    runs = _HIGH.findall(data)
    if 2 * sum(len(run) == 1 for run in runs) > len(runs):
        matches = [match for page in _LATIN if (match := from_bytes(data, cp_isolation=[page]).best()) is not None]
        likely = max(matches, key=lambda match: (-match.chaos, match.coherence), default=None)
        if likely is not None and likely.chaos <= 0.2:
            return likely.encoding
    guess = from_bytes(data).best()
    return guess.encoding if guess is not None and guess.chaos <= 0.2 else None


def tidied(text: str) -> str:
    """NFC, lines that end in a line feed, no control characters or lone surrogates, two blank lines at most."""
    return _BLANK.sub("\n\n\n", lines_of(text)).strip()


def lines_of(text: str) -> str:
    """NFC, lines that end in a line feed, no control characters or lone surrogates."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", nfc(lines))


def too_long(characters: int) -> PayloadTooLarge:
    """The error for a text of too many characters."""
    return PayloadTooLarge(f"Its text is longer than {characters} characters.")
