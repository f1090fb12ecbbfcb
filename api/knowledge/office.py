"""Reads office files, e-books, notebooks and Outlook messages with kreuzberg, the extra `formats`."""

from __future__ import annotations

import re
from typing import Final

import kreuzberg

from api.errors import UnreadableDocument
from api.knowledge.plain_text import Parsed, too_long

_MIDNIGHT: Final = re.compile(r"\b(\d{4}-\d\d-\d\d) 00:00:00\b")
"""A spreadsheet's date."""


def read(data: bytes, pages: int, characters: int, media_type: str) -> Parsed:
    """The text as Markdown, and the title if the file has one. Sheets and slides begin with a heading.

    Raises `UnreadableDocument`, `PayloadTooLarge`.
    """
    try:
        found = kreuzberg.extract_bytes_sync(data, media_type, config=_configuration())
    except kreuzberg.KreuzbergError as error:
        raise UnreadableDocument(f"The file cannot be read: {' '.join(str(error).split())[:200]}") from None
    if len(found.content) > characters:
        raise too_long(characters)
    title = found.metadata.get("title")
    return Parsed(_MIDNIGHT.sub(r"\1", found.content), title if isinstance(title, str) else None)


def _configuration() -> kreuzberg.ExtractionConfig:
    """Keeps no files, and downloads no models."""
    return kreuzberg.ExtractionConfig(output_format="markdown", disable_ocr=True, use_cache=False)
