"""Reads one file in a separate process: the file on standard input, JSON on standard output.

Arguments: the media type, the most pages, the most characters, the most seconds of CPU time.
"""

from __future__ import annotations

import importlib
import resource
import sys
from typing import Any, Final

import orjson

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge.plain_text import DOCX, HTML, PDF, PLAIN, read_text, tidied, too_long

MEMORY: Final = 1024 * 1024 * 1024
"""Bytes of address space."""
READERS: Final = {HTML: "html", PDF: "pdf", DOCX: "docx"}


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
            reader = importlib.import_module(f"api.knowledge.readers.{READERS[media_type]}")
            text, title, count = reader.read(data, pages, characters)
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


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


if __name__ == "__main__":
    main(sys.argv[1:])
