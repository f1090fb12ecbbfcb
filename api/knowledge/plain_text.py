"""Detects a file's type, decodes text files and normalizes text. Pure."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from charset_normalizer import from_bytes

from api.errors import PayloadTooLarge, UnreadableDocument, UnsupportedDocument
from api.knowledge import markdown
from api.knowledge.repair import repaired, with_plain_letters
from api.unicode_text import nfc

TEXT: Final = "text/plain"
MARKDOWN: Final = "text/markdown"
HTML: Final = "text/html"
PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

BY_SUFFIX: Final = {
    ".txt": TEXT,
    ".text": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
}
PLAIN: Final = frozenset({TEXT, MARKDOWN})
"""Kinds that are plain text."""
KINDS: Final = frozenset(BY_SUFFIX.values())
"""All supported kinds."""
_BINARY: Final = (b"\x7fELF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x1f\x8b", b"MZ", b"\xd0\xcf\x11\xe0", b"Rar!")
_READ: Final = f"read are {', '.join(sorted(BY_SUFFIX))}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from a file. `text` is Markdown. `title` and `pages` if the file has them.

    `tags`: those in a file's front matter. `warnings`: sentences about what was left out, such as pages without text.
    """

    text: str
    title: str | None = None
    pages: int | None = None
    tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def media_type(file_name: str | None, declared: str | None, head: bytes) -> str:
    """One of the kinds above. `head`: the first bytes. Raises `UnsupportedDocument`."""
    named = BY_SUFFIX.get(PurePath(file_name or "").suffix.lower())
    said = (declared or "").partition(";")[0].strip().lower()
    kind = named or (said if said in KINDS else None)
    if head.lstrip()[:5] == b"%PDF-":
        return PDF
    if kind is None:
        raise UnsupportedDocument(f"The kind of {_described(file_name, said)} is not known: {_READ}.")
    if kind not in {PDF, DOCX} and (head.startswith((b"PK\x03\x04", *_BINARY)) or _is_binary(head)):
        raise UnsupportedDocument(f"{_described(file_name, said)} is not text: {_READ}.")
    return kind


def _is_binary(head: bytes) -> bool:
    """UTF-16 and UTF-32 contain zeros too, but begin with a byte order mark."""
    return b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))


def _described(file_name: str | None, said: str) -> str:
    return f"'{file_name}'" if file_name else f"a file of type '{said or 'unknown'}'"


_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"))
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_BLANK: Final = re.compile(r"\n[ \t]*+(?:\n[ \t]*+){2,}+")
GUESSED_FROM: Final = 256 * 1024
"""Bytes from which the encoding is guessed."""
_BEYOND_ASCII: Final = bytes(range(0x80, 0x100))
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
_LATIN: Final = ("cp1252", "cp1250", "cp1257", "cp1254")
"""Encodings of scripts whose letters are mostly ASCII. The first of equals wins, since a few letters tell little."""


def read_text(data: bytes, media_type: str) -> Parsed:
    """A plain file, with its title if it is Markdown. Raises `UnreadableDocument`."""
    text = tidied(decoded(data))
    if media_type == MARKDOWN:
        found = markdown.read(text)
        return Parsed(with_plain_letters(found.text).strip(), found.title, tags=found.tags)
    return Parsed(repaired(text))


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
    runs = _HIGH.findall(data)
    if 2 * sum(len(run) == 1 for run in runs) > len(runs):
        matches = [match for page in _LATIN if (match := from_bytes(data, cp_isolation=[page]).best()) is not None]
        likely = max(matches, key=lambda match: (-match.chaos, match.coherence), default=None)
        if likely is not None and likely.chaos <= 0.2:
            return likely.encoding
    guess = from_bytes(data).best()
    return guess.encoding if guess is not None and guess.chaos <= 0.2 else None


def tidied(text: str) -> str:
    """NFC, lines that end in a line feed, no control characters, at most two blank lines in a row."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _BLANK.sub("\n\n\n", _CONTROL.sub("", nfc(lines))).strip()


def too_long(characters: int) -> PayloadTooLarge:
    """The error for a text of too many characters."""
    return PayloadTooLarge(f"Its text is longer than {characters} characters.")
