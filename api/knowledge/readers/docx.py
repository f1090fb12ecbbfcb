"""Converts .docx to Markdown. A .docx is a zip file, so its unpacked size is checked first."""

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
"""Highest compression ratio of an entry larger than a mebibyte."""
BODY: Final = "word/document.xml"


def read(data: bytes, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """The text, the first heading as title, no page count. Images are left out."""
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
        raise UnreadableDocument("The file is not a .docx document: it is not a zip archive.") from None
    if BODY not in {entry.filename for entry in entries}:
        raise UnreadableDocument(f"The file is not a .docx document: it has no {BODY}.")
    unpacked = sum(entry.file_size for entry in entries)
    bomb = any(e.file_size > 1024 * 1024 and e.file_size > MAX_RATIO * max(e.compress_size, 1) for e in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_BYTES or bomb:
        raise UnreadableDocument(
            f"The file would unpack to {unpacked} bytes in {len(entries)} parts, more than is allowed."
        )
