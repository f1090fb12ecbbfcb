"""Normalizes untrusted Unicode text in linear time, and detects text without visible characters. Pure.

Normalization sorts each run of combining marks, and `unicodedata` takes quadratic time for a run. Runs are therefore
limited first, like in the Stream-Safe Text Format of UAX #15: the invisible U+034F follows every 30 marks. No mark is
dropped, so two texts that differ only in their last marks still differ.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

MAX_MARKS: Final = 30
"""Combining marks in a run. Real languages use only a few."""
JOINER: Final = "\u034f"
"""Combining grapheme joiner. It ends a run and is invisible."""

_RUN: Final = re.compile(rf"[^\w\x00-\x7f]{{{MAX_MARKS // 2 + 1},}}")
"""Runs that may have too many marks: some characters decompose into two. Marks are not word characters."""

INVISIBLE: Final = (
    r"\s\x00-\x1f\x7f-\x9f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Ranges for a regex class: white space, controls, fillers, joiners, direction and variation marks, tags."""
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
BLANK: Final = re.compile(f"[{INVISIBLE}]*+")


def is_blank(text: str) -> bool:
    """Returns whether `text` has no visible character."""
    return BLANK.fullmatch(text) is not None


def one_line(text: str, longest: int) -> str:
    """Returns `text` on one line, without control characters and lone surrogates; empty if nothing is visible."""
    line = _UNPRINTABLE.sub("", " ".join(text.split()))[:longest].strip()
    return "" if is_blank(line) else line


def nfc(text: str) -> str:
    """Returns `text` in NFC, with limited runs of combining marks."""
    return unicodedata.normalize("NFC", with_limited_marks(text))


def with_limited_marks(text: str) -> str:
    """Returns `text` with a joiner after every 30 consecutive combining marks. Most texts are unchanged."""
    return text if text.isascii() else _RUN.sub(_limited, text)


def _limited(run: re.Match[str]) -> str:
    """Works on slices: a list of characters would take 80 bytes for each."""
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
    """Returns how many combining marks the decomposed character has; 0 for other characters."""
    decomposed = unicodedata.normalize("NFD", character)
    return len(decomposed) if unicodedata.combining(decomposed[0]) else 0
