"""When two questions are the same to the letter, apart from how they were typed."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from api.guards.letter_case import fold
from api.unicode_text import nfc

LONGEST: Final = 8_192
"""Characters of the longest text that is normalised. Longer ones are prompts that programs write, and always alike."""

MEANINGFUL: Final = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms that say something: 2² is not 22."""

INVISIBLE: Final = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff\ufe0e\ufe0f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
"""Soft hyphens, zero-width spaces, marks of direction, variation selectors; not the joiners, which change letters."""

FINAL_PUNCTUATION: Final = "?!.…。？！ "

_FACTORIAL: Final = re.compile(r"(?:\d|\b\w)$")


def normalise(question: str) -> str:
    """Unicode NFKC (save for superscripts and their kind), case (save for code, units and their kind: `letter_case`),
    white space, what is invisible, and the punctuation at the end.

    Nothing that can be seen inside the question is dropped, so questions of different meaning stay apart. One of
    which nothing can be seen stays as it is, and so does one of more than `LONGEST` characters.
    """
    if len(question) > LONGEST:
        return question
    composed = nfc(question.translate(INVISIBLE))
    compatible = composed if composed.isascii() else "".join(map(_compatible, composed))
    folded = " ".join(fold(compatible).split())
    return _without_end(folded) or folded or question


def _compatible(character: str) -> str:
    if unicodedata.decomposition(character).startswith(MEANINGFUL):
        return character
    return unicodedata.normalize("NFKC", character)


def _without_end(text: str) -> str:
    """5! is not 5, nor is n! n."""
    bare = text.rstrip(FINAL_PUNCTUATION)
    end = text[len(bare) :]
    marks = len(end) - len(end.lstrip("!"))
    return f"{bare}{'!' * marks}" if marks and _FACTORIAL.search(bare) else bare
