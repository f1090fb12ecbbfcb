"""Reads one file in a separate process: the file on standard input, JSON on standard output.

Arguments: the media type, the most pages, the most characters, the most seconds of CPU time.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import orjson

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge.plain_text import DOCX, HTML, PDF, PLAIN, read_text, tidied, too_long

MEMORY: Final = 1024 * 1024 * 1024
"""Bytes of address space."""
Reader = Callable[[bytes, int, int], tuple[str, str | None, int | None]]
"""Takes the file, the most pages and the most characters. Returns the text, the title, and the page count."""


def main(arguments: list[str]) -> None:
    """Writes what was read, or the error."""
    media_type, pages, characters, seconds = arguments[0], *map(int, arguments[1:])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # output of a library must not corrupt the reply
    out.write(orjson.dumps(_read(sys.stdin.buffer.read(), media_type, pages, characters)))


def _read(data: bytes, media_type: str, pages: int, characters: int) -> dict[str, Any]:
    try:
        if media_type in PLAIN:
            (text, title), count = read_text(data, media_type), None
        else:
            text, title, count = _reader(media_type)(data, pages, characters)
            text = tidied(text)
        if len(text) > characters:  # refused here already: nested lists grow with each indent
            raise too_long(characters)
    except PayloadTooLarge as error:
        return {"too_large": error.detail}
    except UnreadableDocument as error:
        return {"unreadable": error.detail}
    except MemoryError:
        return {"unreadable": "Reading it takes too much memory."}
    except Exception as error:  # noqa: BLE001 - the libraries' errors share no base: whatever it is, the file is at fault
        return {"unreadable": f"The file is damaged: {_line(error)}"}
    return {"text": text, "title": tidied(title)[:500] if title else None, "pages": count}


def _reader(media_type: str) -> Reader:
    if media_type == PDF:
        return read_pdf
    from api.knowledge import html  # PDFs do not need its libraries

    return {HTML: html.read, DOCX: html.read_docx}[media_type]


def read_pdf(data: bytes, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """The text with a blank line between pages, the title from the metadata, the page count."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocument("The PDF is encrypted. Remove its password.")
        count = len(reader.pages)
    except PyPdfError as error:
        raise UnreadableDocument(f"The PDF cannot be read: {error}") from None
    if count > pages:
        raise PayloadTooLarge(f"The PDF has {count} pages; the limit is {pages}.")
    texts: list[str] = []
    length = 0
    for page in reader.pages:
        texts.append(page.extract_text())
        length += len(texts[-1])
        if length > characters:
            raise too_long(characters)
    if not any(text.strip() for text in texts):
        raise UnreadableDocument("The PDF contains only scanned images; OCR is not supported.")
    title = reader.metadata.title if reader.metadata else None
    return "\n\n".join(texts), str(title).strip() or None if title else None, count


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


if __name__ == "__main__":
    main(sys.argv[1:])
