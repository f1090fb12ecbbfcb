"""Converts the visible text of HTML pages to Markdown."""

from __future__ import annotations

import re
from typing import Any, Final

from bs4 import BeautifulSoup, Declaration, Doctype, ProcessingInstruction, Tag
from bs4.dammit import EncodingDetector
from markdownify import ATX, MarkdownConverter

from api.knowledge.markdown import LONGEST_LANGUAGE
from api.knowledge.plain_text import Parsed, decoded

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

MAX_DEPTH: Final = 60
"""Elements nested deeper become plain text: the converter calls itself for each level."""
_HIDDEN: Final = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_POWER: Final = re.compile(r"[-+\u2212]?\w{1,4}")
_ORDINALS: Final = frozenset(("st", "nd", "rd", "th", "er", "re", "e", "o", "a", "tm", "sm", "r", "c"))


def read(data: bytes | str, pages: int, characters: int) -> Parsed:
    """The text, the title and the declared language. The encoding comes from the page's byte order mark or `meta`."""
    page = data if isinstance(data, str) else decoded(data, _said(data))
    soup = _Page(_ended(page), "html.parser")
    title, language = _title(soup), _language(soup)
    for element in soup(IGNORED_TAGS):
        element.decompose()
    if soup.head is not None:
        soup.head.decompose()
    return Parsed(to_markdown(soup), title, language=language)


def to_markdown(soup: BeautifulSoup) -> str:
    """What a reader sees. Links keep their words, and images their alternative text."""
    _drop_hidden(soup)
    _limit_depth(soup)
    converter = _Converter(heading_style=ATX, bullets="-", strip=["a"], escape_misc=False, table_infer_header=True)
    return str(converter.convert_soup(soup))


def _as_block(converter: Any, el: Tag, text: str, parent_tags: set[str]) -> str:
    return str(converter.convert_div(el, text, parent_tags))


class _Converter(MarkdownConverter):
    """Separates all elements that browsers show as blocks. The base class glues those that it does not know."""

    convert_aside = convert_main = convert_header = convert_footer = convert_details = convert_summary = _as_block
    convert_form = convert_fieldset = convert_legend = convert_address = convert_figure = convert_body = _as_block

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Only the alternative text."""
        alt = el.get("alt")
        return f" {alt.strip()} " if isinstance(alt, str) and alt.strip() else " "

    def convert_sup(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Writes a power as 10^6: it would become 106. Notes and ordinals stay as they are."""
        before = el.previous_sibling
        is_power = before is not None and before.get_text()[-1:].isalnum() and _POWER.fullmatch(text)
        return f"^{text}" if is_power and text.lower() not in _ORDINALS else text


def _drop_hidden(soup: BeautifulSoup) -> None:
    """Removes what browsers do not show: declarations, and elements that their own attributes hide."""
    for part in soup.find_all(string=lambda text: isinstance(text, Declaration | Doctype | ProcessingInstruction)):
        part.extract()
    for element in soup.find_all(_is_hidden):
        element.decompose()


def _is_hidden(element: Tag) -> bool:
    style = element.get("style")
    return (
        element.has_attr("hidden")
        or element.get("aria-hidden") == "true"
        or (isinstance(style, str) and _HIDDEN.search(style) is not None)
    )


def _limit_depth(soup: BeautifulSoup) -> None:
    """Makes the elements below `MAX_DEPTH` plain text, without their structure."""
    level: list[Tag] = [soup]
    for _ in range(MAX_DEPTH):
        level = [child for element in level for child in element.children if isinstance(child, Tag)]
    for element in level:
        element.string = element.get_text("\n", strip=True)


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


def _language(soup: BeautifulSoup) -> str | None:
    for element in (soup.html, soup.body):
        language = element.get("lang") if element is not None else None
        if isinstance(language, str) and language:
            return language[:LONGEST_LANGUAGE]
    return None


def _title(soup: BeautifulSoup) -> str | None:
    for element in (soup.title, soup.h1):
        if element is not None and (text := element.get_text(" ", strip=True)):
            return text
    return None
