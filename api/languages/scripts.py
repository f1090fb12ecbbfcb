"""The scripts of a text: which its letters are of, and its words that are in none of those that are known."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

LATIN: Final = "LATIN"
COMMON: Final = ""
"""What all scripts share: figures, marks, symbols."""
NAMES: Final = {
    "CJK": "HAN", "IDEOGRAPHIC": "HAN", "KANGXI": "HAN", "BOPOMOFO": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA",
    "KATAKANA-HIRAGANA": "KANA", "HANGUL": "HANGUL", "LATIN": LATIN,
}  # fmt: skip
"""Scripts by the first word of the names of their letters, where that is not the script itself."""
WIDTHS: Final = ("FULLWIDTH ", "HALFWIDTH ")
LETTERLIKE: Final = frozenset(
    ["MODIFIER", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "KELVIN", "ANGSTROM", "OHM", "DOUBLE-STRUCK",
     "SCRIPT", "BLACK-LETTER", "SUPERSCRIPT", "SUBSCRIPT", "ROMAN", "CIRCLED", "PARENTHESIZED", "TURNED", "PLANCK",
     "EULER", "INFORMATION", "ESTIMATED", "BLACKBOARD"]
)  # fmt: skip
"""First words of the names of symbols that Unicode counts among letters."""


@lru_cache(maxsize=8192)
def script_of(character: str) -> str:
    """`LATIN`, `HAN`, `KANA`, `CYRILLIC` and so on for a letter and its marks, `COMMON` for all else."""
    if character.isascii():
        return LATIN if character.isalpha() else COMMON
    category = unicodedata.category(character)
    if category[0] not in "LM":
        return COMMON
    name = unicodedata.name(character, "")
    for width in WIDTHS:
        name = name.removeprefix(width)
    first = name.split(" ", 1)[0]
    if first in LETTERLIKE or first in ("COMBINING", "VARIATION", "ZERO", ""):
        return COMMON
    return NAMES.get(first, first)


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    if text.isascii():
        return Counter({LATIN: sum(map(str.isalpha, text))})
    found = Counter(map(script_of, text))
    del found[COMMON]
    return found


def words_outside(text: str, scripts: frozenset[str]) -> tuple[str, ...]:
    """The runs of a text whose letters are of none of `scripts`, in order and without case."""
    return () if text.isascii() else tuple(_outside(text, scripts))


def _outside(text: str, scripts: frozenset[str]) -> Iterator[str]:
    run: list[str] = []
    for character in text:
        script = script_of(character)
        belongs = script != COMMON and script not in scripts
        if belongs or (run and script == COMMON and unicodedata.category(character)[0] == "M"):
            run.append(character)
        elif run:
            yield "".join(run).casefold()
            run.clear()
    if run:
        yield "".join(run).casefold()
