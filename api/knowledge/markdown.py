"""Reads Markdown: takes what front matter says about it, and rewrites what the chunker cannot read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from api.unicode_text import one_line

FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(.{0,16384}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
"""YAML at the start of the text. More would take seconds."""
FENCED: Final = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
"""Code, where lookalikes of headings are comments."""
LONGEST_TITLE: Final = 500
LONGEST_TAG: Final = 100
LONGEST_DATE: Final = 40
LONGEST_LANGUAGE: Final = 40
MAX_TAGS: Final = 20
_SETEXT: Final = re.compile(
    r"(?:(?<=\n\n)|\A\n?)(?! {0,3}(?:[#>|*+-]|\d{1,9}[.)]))( {0,3}\S.*)\n {0,3}(=+|-{2,})[ \t]*(?=\n|\Z)"
)
"""A heading underlined with `=` or `-`."""
_NOTHING: Final = ("", "~", "null")
"""A value that is not given, in YAML."""
_HEADING: Final = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)
_TITLE: Final = re.compile(r"\s*#[ \t]+(\S.*)")


@dataclass(frozen=True, slots=True)
class Markdown:
    """`text` has headings with `#` only, and neither front matter nor comments."""

    text: str
    title: str | None = None
    tags: tuple[str, ...] = ()
    language: str | None = None


def read(text: str) -> Markdown:
    """Takes text with line feeds. The title is the front matter's, or the first heading."""
    found = FRONT_MATTER.match(text)
    front = _front_matter(found[1]) if found else None
    if found is None or front is None:
        body = _outside_code(text, _evened)
        return Markdown(body, first_heading(body))
    body = _outside_code(text[found.end() :], _evened).lstrip("\n")
    if day := _line(front.get("date"), LONGEST_DATE):
        body = f"Date: {day}\n\n{body}"
    title = _line(front.get("title"), LONGEST_TITLE)
    language = _line(front.get("lang") or front.get("language"), LONGEST_LANGUAGE)
    return Markdown(body, title or first_heading(body), _tags(front.get("tags")), language)


def _front_matter(source: str) -> dict[str, Any] | None:
    """None if it is not a mapping: then it is text between two rules.

    Every value stays the text that the author wrote. Loaders that make numbers and dates of it fail on some texts, each
    with another error.
    """
    import yaml

    try:
        front = yaml.load(source, yaml.BaseLoader)  # noqa: S506 - makes lists, mappings and strings only
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return {str(name).lower(): value for name, value in front.items()} if isinstance(front, dict) else None


def _line(value: object, longest: int) -> str | None:
    said = one_line(value, longest) if isinstance(value, str) else ""
    return None if said in _NOTHING else said


def _tags(value: object) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    tags = [tag for one in listed if (tag := _line(one, LONGEST_TAG))]
    return tuple(dict.fromkeys(tags))[:MAX_TAGS]


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, start = [], 0
    for code in FENCED.finditer(text):
        parts += [change(text[start : code.start()]), code[0]]
        start = code.end()
    return "".join((*parts, change(text[start:])))


def _evened(text: str) -> str:
    return _SETEXT.sub(_with_marks, _without_comments(text))


def _with_marks(heading: re.Match[str]) -> str:
    return f"{'#' if heading[2][0] == '=' else '##'} {heading[1].strip()}"


def _without_comments(text: str) -> str:
    """A comment without an end stays text, as in browsers that show it. Not by a pattern: that takes quadratic time."""
    parts, start = [], 0
    while (begin := text.find("<!--", start)) >= 0 and (end := text.find("-->", begin + 4)) >= 0:
        parts.append(text[start:begin])
        start = end + 3
    return "".join((*parts, text[start:]))


def first_heading(text: str) -> str | None:
    """The level-one heading at the start of a Markdown text, as its title."""
    found = _TITLE.match(text)
    return heading_words(found[1])[:LONGEST_TITLE] if found else None


def any_heading(text: str) -> str | None:
    """The first level-one heading outside of code."""
    found = _HEADING.search(FENCED.sub("", text))
    return heading_words(found[1])[:LONGEST_TITLE] if found else None


def heading_words(line: str) -> str:
    """The text of a heading, without a closing `#`: `C# ##` is `C#`.

    Not by a pattern: one that looks for the end takes quadratic time in the line's length, and would block the worker.
    """
    words = line.strip()
    bare = words.rstrip("#")
    return bare.rstrip() if bare[-1:].isspace() else words
