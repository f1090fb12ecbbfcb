"""Reads one file in a separate process: the file on standard input, JSON on standard output.

Arguments: the media type, the most pages, the most characters, the most seconds of CPU time, and the languages for OCR.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import orjson

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge.markdown import LONGEST_TITLE
from api.knowledge.plain_text import DOCX, PDF, PLAIN, Parsed, read_text, tidied, too_long

MEMORY: Final = 1024 * 1024 * 1024
"""Bytes of address space."""
Reader = Callable[[bytes, int, int], Parsed]
"""Takes the file, the most pages and the most characters."""


def main(arguments: list[str]) -> None:
    """Writes what was read, or the error."""
    media_type, languages = arguments[0], arguments[4]
    pages, characters, seconds = map(int, arguments[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # output of a library must not corrupt the reply
    out.write(orjson.dumps(_read(sys.stdin.buffer.read(), _reader(media_type, languages), pages, characters)))


def _read(data: bytes, reader: Reader, pages: int, characters: int) -> dict[str, Any]:
    try:
        parsed = reader(data, pages, characters)
        parsed = replace(parsed, text=tidied(parsed.text), title=_title(parsed.title))
        if len(parsed.text) > characters:  # refused here already: nested lists grow with each indent
            raise too_long(characters)
    except PayloadTooLarge as error:
        return {"too_large": error.detail}
    except UnreadableDocument as error:
        return {"unreadable": error.detail}
    except MemoryError:
        return {"unreadable": "Reading it takes too much memory."}
    except Exception as error:  # noqa: BLE001 - the libraries' errors share no base: whatever it is, the file is at fault
        return {"unreadable": f"The file is damaged: {_line(error)}"}
    return asdict(parsed)


def _reader(media_type: str, languages: str) -> Reader:
    """Imports only the libraries that this kind needs."""
    if media_type in PLAIN:
        return lambda data, _, __: read_text(data, media_type)
    if media_type == PDF:
        from api.knowledge import pdf

        return partial(pdf.read, ocr_languages=languages)
    if media_type == DOCX:
        from api.knowledge import docx

        return docx.read
    from api.knowledge import html

    return html.read


def _title(title: str | None) -> str | None:
    return tidied(title)[:LONGEST_TITLE] or None if title else None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


if __name__ == "__main__":
    main(sys.argv[1:])
