"""Reads one file in a separate process: the file on standard input, JSON on standard output.

Arguments: the media type, the most pages, the most characters, the most seconds of CPU time, the tokens of a chunk, the
languages for OCR, and the file's name.
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
from api.knowledge.kinds import CSV, DOCX, EMAIL, HTML, LANGUAGES, PDF, PLAIN, TSV, ZIP
from api.knowledge.markdown import LONGEST_TITLE
from api.knowledge.plain_text import Parsed, read_table, read_text, tidied, too_long
from api.unicode_text import one_line

MEMORY: Final = 1024 * 1024 * 1024
"""Bytes of address space."""
LONGEST_WARNING: Final = 2_000
Reader = Callable[[bytes, int, int], Parsed]
"""Takes the file, the most pages and the most characters."""


def main(arguments: list[str]) -> None:
    """Writes what was read, or the error."""
    media_type, *numbers, languages, name = arguments
    pages, characters, seconds, tokens = map(int, numbers)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # output of a library must not corrupt the reply
    read_file = reader(media_type, languages, name, tokens)
    out.write(orjson.dumps(read(sys.stdin.buffer.read(), read_file, pages, characters)))


def read(data: bytes, read_file: Reader, pages: int, characters: int) -> dict[str, Any]:
    """What was read as JSON values, or the error."""
    try:
        parsed = read_file(data, pages, characters)
        text = tidied(parsed.text)
        starts = parsed.page_starts if text == parsed.text else ()
        title = one_line(parsed.title or "", LONGEST_TITLE) or None
        warnings = tuple(one_line(warning, LONGEST_WARNING) for warning in parsed.warnings)
        parsed = replace(parsed, text=text, title=title, warnings=warnings, page_starts=starts)
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


def reader(media_type: str, languages: str = "", name: str = "", tokens: int = 256, depth: int = 0) -> Reader:
    """Imports only the libraries that this kind needs. `depth`: of a file in a file."""
    if media_type in PLAIN:
        return lambda data, _, characters: read_text(_bounded(data, characters), media_type)
    if media_type in (CSV, TSV):
        return lambda data, _, characters: read_table(_bounded(data, characters), media_type, characters)
    if media_type in (ZIP, EMAIL):
        return _container_reader(media_type, languages, tokens, depth)
    if media_type in LANGUAGES:
        from api.knowledge import code

        return lambda data, _, characters: code.read(_bounded(data, characters), media_type, name, tokens)
    if media_type == PDF:
        from api.knowledge import pdf

        return partial(pdf.read, ocr_languages=languages)
    if media_type == DOCX:
        from api.knowledge import docx

        return docx.read
    if media_type == HTML:
        from api.knowledge import html

        return html.read
    from api.knowledge import office

    return partial(office.read, media_type=media_type)


def _bounded(data: bytes, characters: int) -> bytes:
    """Refuses a text that must be too long before it is decoded: a small archive may have one of 100 MB."""
    if len(data) > 4 * (characters + 1):  # a character and a byte order mark have at most four bytes
        raise too_long(characters)
    return data


def _container_reader(media_type: str, languages: str, tokens: int, depth: int) -> Reader:
    from api.knowledge import containers

    read = containers.read_zip if media_type == ZIP else containers.read_email

    def read_all(data: bytes, pages: int, characters: int) -> Parsed:
        def read_one(content: bytes, kind: str, name: str, most: int) -> Parsed:
            if depth >= containers.MAX_DEPTH:
                raise UnreadableDocument("The files are nested too deeply.")
            return reader(kind, languages, name, tokens, depth + 1)(content, pages, most)

        return read(data, characters, read_one)

    return read_all


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


if __name__ == "__main__":
    main(sys.argv[1:])
