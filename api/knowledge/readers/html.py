"""HTML as Markdown: what a reader reads of the page."""

from __future__ import annotations

from typing import Final

from bs4 import BeautifulSoup
from markdownify import ATX, MarkdownConverter

SILENT: Final = ("script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "form", "button")
"""Elements that are no text of the page."""


def read(data: bytes | str, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """Text, title, no number of pages. The encoding is the page's own, by its mark or its `meta`."""
    soup = BeautifulSoup(data, "html.parser")
    title = _title(soup)
    for element in soup(SILENT):
        element.decompose()
    if soup.head is not None:
        soup.head.decompose()
    converter = MarkdownConverter(heading_style=ATX, bullets="-", strip=["img"], escape_misc=False)
    return converter.convert_soup(soup), title, None


def _title(soup: BeautifulSoup) -> str | None:
    for element in (soup.title, soup.h1):
        if element is not None and (text := element.get_text(" ", strip=True)):
            return text
    return None
