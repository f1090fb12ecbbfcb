"""Unicode normalisation in linear time, for text that anyone may have written. Pure.

Normalising sorts each run of combining marks, and `unicodedata` takes the square of the run's length to do so. So runs
are limited first, as the Stream-Safe Text Format of UAX #15 limits them: behind 30 marks comes U+034F, which nobody
sees. No mark is dropped, so that two texts which differ only in their last marks still differ.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

MOST_MARKS: Final = 30
"""Combining marks in a run. No language writes more than a handful."""
JOINER: Final = "\u034f"
"""Combining grapheme joiner: it ends a run, and is invisible."""

_RUN: Final = re.compile(rf"[^\w\x00-\x7f]{{{MOST_MARKS // 2 + 1},}}")
"""May hold too many marks: some characters are two of them. No mark is a word character."""


def nfc(text: str) -> str:
    """`text` in NFC, with its runs of combining marks limited."""
    return unicodedata.normalize("NFC", with_limited_marks(text))


def with_limited_marks(text: str) -> str:
    """`text` with a joiner behind every 30 combining marks in a row. Most texts come back as they are."""
    return text if text.isascii() else _RUN.sub(_limited, text)


def _limited(run: re.Match[str]) -> str:
    parts: list[str] = []
    marks = 0
    for character in run[0]:
        more = _marks(character)
        if marks + more > MOST_MARKS:
            parts.append(JOINER)
            marks = 0
        marks = marks + more if more else 0
        parts.append(character)
    return "".join(parts)


@lru_cache(4096)
def _marks(character: str) -> int:
    """How many combining marks a character is, once it is decomposed; 0 where it is none."""
    decomposed = unicodedata.normalize("NFD", character)
    return len(decomposed) if unicodedata.combining(decomposed[0]) else 0
