"""A document's own `[2]` becomes `(2)` in the prompt: a model that copies it would cite another document.

| in a passage or a title | in the prompt |
|---|---|
| `[2]`, `[1, 3]`, `[2-4]`, `［２］`, `【2】`, `\\[2\\]` | `(2)`, `(1, 3)`, `(2-4)`, `(２)`, `(2)`, `(2)` |
| `[2024]`, `[x]`, `[0, 1]`, `[2](https://...)`, anything in backticks | as it is: no answer is read so either |
"""

from __future__ import annotations

import re
from typing import Final

from api.query.code_marks import CodeMarks
from api.unicode_text import INVISIBLE

_GAP: Final = f"[{INVISIBLE}]{{0,8}}"
_ITEM: Final = rf"\d{{1,3}}(?:{_GAP}[-\u2010-\u2015\u2212~]{_GAP}\d{{1,3}})?"
_NUMBERS: Final = re.compile(
    rf"\\?[\[\uff3b\u3010\u3014\u27e6](?P<inside>{_GAP}{_ITEM}(?:{_GAP}[,;\uff0c\uff1b\u060c\u3001]{_GAP}{_ITEM})*{_GAP})"
    r"\\?[\]\uff3d\u3011\u3015\u27e7]"
    r"(?!\([^\[])"  # the text of a link, but for a citation in parentheses behind a citation
)
_ZERO: Final = re.compile(r"(?<!\d)0+(?!\d)")


def rewritten(text: str) -> str:
    """`text` with its own bracketed numbers in parentheses, but for those in code."""
    if _NUMBERS.search(text) is None:
        return text
    code = _code(text)
    return _NUMBERS.sub(lambda found: found[0] if code[found.start()] else _in_parentheses(found), text)


def _in_parentheses(found: re.Match[str]) -> str:
    inside = found["inside"]
    interval = _ZERO.search(inside) is not None and not inside.strip().isdecimal()
    return found[0] if interval else f"({inside})"


def _code(text: str) -> bytearray:
    """Of each character whether it is code: of none, where a block is cut off at an edge and either may be meant."""
    marks = CodeMarks()
    code = bytearray(len(text))
    if "`" not in text:
        return code
    for place, character in enumerate(text):
        marks.read(character)
        code[place] = marks.inside
    marks.read("\n")
    return bytearray(len(text)) if marks.inside else code
