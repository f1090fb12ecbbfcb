"""Converts the visible text of HTML pages to Markdown, and .docx documents by way of HTML.

A .docx is a zip file, so its unpacked size is checked first.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from markdownify import ATX, MarkdownConverter

from api.errors import UnreadableDocument
from api.knowledge.plain_text import decoded, too_long

FIELDS: Final = ("button", "select", "textarea")
"""Form controls. Forms themselves may hold text: some frameworks wrap the whole page in one."""
IGNORED_TAGS: Final = ("script", "style", "noscript", "template", "svg", "nav", "iframe", "object", *FIELDS)
"""Elements without readable text."""
LATIN: Final = ("iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii")
"""Encodings that browsers read as Windows-1252."""
_PARTS: Final = ("body", "div", "section", "article", "main", "aside", "header", "footer", "form", "fieldset")
_GROUPS: Final = (*_PARTS, "blockquote", "figure", "details", "ul", "ol", "dl", "table")
_CONTAINERS: Final = frozenset((*_GROUPS, *IGNORED_TAGS))
"""Elements that only their own end tag closes, with everything open in them."""
_BLOCKS: Final = (*_GROUPS, "p", "pre", "hr", "address", "nav", "h1", "h2", "h3", "h4", "h5", "h6")
_ENDED: Final = {
    **dict.fromkeys(_BLOCKS, ("p", "head")),
    "li": ("li",),
    **dict.fromkeys(("dt", "dd"), ("dt", "dd")),
    **dict.fromkeys(("td", "th"), ("td", "th")),
    "tr": ("tr",),
    **dict.fromkeys(("thead", "tbody", "tfoot"), ("thead", "tbody", "tfoot")),
}
"""Open elements without an end tag that the start of an element closes."""
_UNTERMINATED: Final = (
    (re.compile(r"--!?\s{0,8}>"), re.compile(r"<(?=!-)")),
    (re.compile(r"\]\s{0,8}>"), re.compile(r"<(?=!\[)")),
    (re.compile(r">"), re.compile(r"<")),
)
"""The ends of a comment, a marked section and a tag, and the `<` that begins each."""
_BLANKS: Final = re.compile(r"[ \t\f\v]{100,}")
"""The converter takes quadratic time for a run of blanks."""

MAX_DOCX_ENTRIES: Final = 2_000
MAX_DOCX_BYTES: Final = 100 * 1024 * 1024
MAX_DOCX_RATIO: Final = 200
"""Highest compression ratio of an entry larger than a mebibyte."""
DOCX_BODY: Final = "word/document.xml"


def read(data: bytes | str, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """The text, the title, no page count. The encoding comes from the page's byte order mark or `meta`."""
    page = data if isinstance(data, str) else decoded(data, _said(data))
    soup = _Page(_ended(page), "html.parser")
    title = _title(soup)
    for element in soup(IGNORED_TAGS):
        element.decompose()
    if soup.head is not None:
        soup.head.decompose()
    converter = MarkdownConverter(heading_style=ATX, bullets="-", strip=["img"], escape_misc=False)
    return converter.convert_soup(soup), title, None


def _ended(page: str) -> str:
    """Escapes the start of each tag, comment or section that never ends, and shortens runs of blanks.

    Before Python 3.13.6 the parser searches the whole page for the end of each of them.
    """
    for end, begin in _UNTERMINATED:
        last = 0
        for found in end.finditer(page):
            last = found.end()
        page = page[:last] + begin.sub("&lt;", page[last:])
    return _BLANKS.sub(" " * 100, page)


class _Page(BeautifulSoup):
    """Closes elements whose end tag HTML lets authors omit; the parser would nest each paragraph in the one before."""

    def handle_starttag(self, name: str, *about: Any, **more: Any) -> Tag | None:
        """Called by the parser."""
        ended = _ENDED.get(name, ())
        for element in reversed(self.tagStack if ended else ()):
            if element.name in ended:
                self.handle_endtag(element.name)
                break
            if element.name in _CONTAINERS:
                break
        return super().handle_starttag(name, *about, **more)


def _said(data: bytes) -> str | None:
    """The page's declared encoding as browsers read it; left to itself the parser guesses wrong."""
    said = EncodingDetector.find_declared_encoding(data, is_html=True)
    if said is None or said.startswith("utf-"):
        return None  # UTF-8: in UTF-16 its `meta` could not be read
    return "cp1252" if said in LATIN else said


def _title(soup: BeautifulSoup) -> str | None:
    for element in (soup.title, soup.h1):
        if element is not None and (text := element.get_text(" ", strip=True)):
            return text
    return None


def read_docx(data: bytes, pages: int, characters: int) -> tuple[str, str | None, int | None]:
    """The text, the first heading as title, no page count. Images are left out."""
    import mammoth  # HTML pages do not need it

    _check_docx(data)
    page = mammoth.convert_to_html(
        BytesIO(data),
        convert_image=mammoth.images.img_element(lambda _: {}),
        style_map="p[style-name='Title'] => h1:fresh",
    ).value
    if len(page) > 4 * characters:
        raise too_long(characters)
    return read(page, pages, characters)


def _check_docx(data: bytes) -> None:
    try:
        with ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except BadZipFile:
        raise UnreadableDocument("The file is not a .docx document: it is not a zip archive.") from None
    if DOCX_BODY not in {entry.filename for entry in entries}:
        raise UnreadableDocument(f"The file is not a .docx document: it has no {DOCX_BODY}.")
    unpacked = sum(entry.file_size for entry in entries)
    bomb = any(e.file_size > 1024 * 1024 and e.file_size > MAX_DOCX_RATIO * max(e.compress_size, 1) for e in entries)
    if len(entries) > MAX_DOCX_ENTRIES or unpacked > MAX_DOCX_BYTES or bomb:
        raise UnreadableDocument(
            f"The file would unpack to {unpacked} bytes in {len(entries)} parts, more than is allowed."
        )
