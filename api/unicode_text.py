"""Unicode text that anyone may have written: normalised in linear time, and whether it shows anything. Pure.

Normalising sorts each run of combining marks, and `unicodedata` takes the square of the run's length to do so. So runs
are limited first, as the Stream-Safe Text Format of UAX #15 limits them: behind 30 marks comes U+034F, which nobody
sees. No mark is dropped, so that two texts which differ only in their last marks still differ.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

MAX_MARKS: Final = 30
"""Combining marks in a run. No language writes more than a handful."""
JOINER: Final = "\u034f"
"""Combining grapheme joiner: it ends a run, and is invisible."""

_RUN: Final = re.compile(rf"[^\w\x00-\x7f]{{{MAX_MARKS // 2 + 1},}}")
"""May hold too many marks: some characters are two of them. No mark is a word character."""

INVISIBLE: Final = (
    r"\s\x00-\x1f\x7f-\x9f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Ranges for a pattern: white space, controls, fillers, joiners, marks of direction and variation, tags."""
BLANK: Final = re.compile(f"[{INVISIBLE}]*+")


def is_blank(text: str) -> bool:
    """Whether nothing of `text` can be seen."""
    return BLANK.fullmatch(text) is not None


def nfc(text: str) -> str:
    """`text` in NFC, with its runs of combining marks limited."""
    return unicodedata.normalize("NFC", with_limited_marks(text))


def with_limited_marks(text: str) -> str:
    """`text` with a joiner behind every 30 combining marks in a row. Most texts come back as they are."""
    return text if text.isascii() else _RUN.sub(_limited, text)


def _limited(run: re.Match[str]) -> str:
    """In slices: a list of its characters would take 80 bytes for each of them."""
    text, parts = run[0], list[str]()
    begin = marks = 0
    for at, character in enumerate(text):
        more = _marks(character)
        if marks + more > MAX_MARKS:
            parts += (text[begin:at], JOINER)
            begin, marks = at, 0
        marks = marks + more if more else 0
    return "".join((*parts, text[begin:]))


@lru_cache(4096)
def _marks(character: str) -> int:
    """How many combining marks a character is, once it is decomposed; 0 where it is none."""
    decomposed = unicodedata.normalize("NFD", character)
    return len(decomposed) if unicodedata.combining(decomposed[0]) else 0
