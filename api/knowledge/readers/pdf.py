"""Converts PDF to text, page by page."""

from __future__ import annotations

from io import BytesIO

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge.plain_text import too_long


def read(data: bytes, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """The text with a blank line between pages, the title from the metadata, the page count."""
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
