"""HTML as Markdown: what a reader reads of the page."""

from __future__ import annotations

from typing import Final

from bs4 import BeautifulSoup
from bs4.dammit import EncodingDetector
from markdownify import ATX, MarkdownConverter

from api.knowledge.plain_text import decoded

SILENT: Final = ("script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "form", "button")
"""Elements that are no text of the page."""
LATIN: Final = ("iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii")
"""Said of pages that are in Windows-1252, and read as that by every browser."""


def read(data: bytes | str, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """Text, title, no number of pages. The encoding is the page's own, by its mark or its `meta`."""
    page = data if isinstance(data, str) else decoded(data, _said(data))
    soup = BeautifulSoup(page, "html.parser")
    title = _title(soup)
    for element in soup(SILENT):
        element.decompose()
    if soup.head is not None:
        soup.head.decompose()
    converter = MarkdownConverter(heading_style=ATX, bullets="-", strip=["img"], escape_misc=False)
    return converter.convert_soup(soup), title, None


def _said(data: bytes) -> str | None:
    """The encoding that a page says it has, as browsers take it; left to itself the parser guesses where it is not."""
    said = EncodingDetector.find_declared_encoding(data, is_html=True)
    if said is None or said.startswith("utf-"):
        return None  # UTF-8: in UTF-16 its `meta` could not be read
    return "cp1252" if said in LATIN else said


def _title(soup: BeautifulSoup) -> str | None:
    for element in (soup.title, soup.h1):
        if element is not None and (text := element.get_text(" ", strip=True)):
            return text
    return None
