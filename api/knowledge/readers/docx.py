"""Word's .docx as Markdown. It is a zip file: what it would unpack to is looked at first."""

from __future__ import annotations

from io import BytesIO
from typing import Final
from zipfile import BadZipFile, ZipFile

import mammoth

from api.errors import UnreadableDocument
from api.knowledge.plain_text import too_long
from api.knowledge.readers import html

MAX_ENTRIES: Final = 2_000
MAX_BYTES: Final = 100 * 1024 * 1024
MAX_RATIO: Final = 200
"""How many times its size in the file an entry of over a mebibyte may have."""
BODY: Final = "word/document.xml"


def read(data: bytes, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """Text, the first heading as title, no number of pages. Pictures are left out."""
    _check(data)
    page = mammoth.convert_to_html(
        BytesIO(data),
        convert_image=mammoth.images.img_element(lambda _: {}),
        style_map="p[style-name='Title'] => h1:fresh",
    ).value
    if len(page) > 4 * characters:
        raise too_long(characters)
    return html.read(page, pages, characters)


def _check(data: bytes) -> None:
    try:
        with ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except BadZipFile:
        raise UnreadableDocument("It is no .docx file: not even a zip file.") from None
    if BODY not in {entry.filename for entry in entries}:
        raise UnreadableDocument(f"It is no .docx file: it has no {BODY}.")
    unpacked = sum(entry.file_size for entry in entries)
    bomb = any(e.file_size > 1024 * 1024 and e.file_size > MAX_RATIO * max(e.compress_size, 1) for e in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_BYTES or bomb:
        raise UnreadableDocument(f"It would unpack to {unpacked} bytes in {len(entries)} parts: that is no document.")
