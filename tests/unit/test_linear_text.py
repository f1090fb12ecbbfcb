"""No function that reads somebody's text takes more than linear time, however the text was made.

Each function reads hostile texts of one length and of four times that length. Linear work takes four times as long,
quadratic work sixteen times. The CPU time of the thread is measured, so a busy machine changes little, and only a ratio
that stays high in every attempt fails.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

import pytest

from api.guards.agreement import disagreement
from api.knowledge.plain_text import first_heading, tidied
from api.query.normalise import LONGEST, normalise
from api.unicode_text import is_blank, nfc

MOST_RATIO: Final = 8.0
LEAST_SECONDS: Final = 0.01
"""Shorter times are noise: the text grows until it takes longer."""
MOST_SECONDS: Final = 2.0
"""What takes longer than this at a short length needs no ratio."""
LONGEST_TEXT: Final = 400_000
ATTEMPTS: Final = 4

HOSTILE: Final = {
    "letters": "a",
    "words": "word ",
    "marks": "\u0315\u0300",
    "marks of narrow katakana": "\uff9e\u0300",
    "hidden marks": "\u0f73\u0315",
    "one long ligature": "\ufdfa",
    "joined emoji": "\U0001f468\u200d\U0001f469\u200d",
    "hangul": "\u1100\u1161\u11a8",
    "spaces": " ",
    "lines": "\n",
    "empty lines": "\n \t",
    "digits": "1",
    "grouped digits": "1,111,",
    "dotted": "1.",
    "not not": "not never ",
    "quotes": '"',
    "quoted": '"a ',
    "backticks": "`",
    "uneven backticks": "` `` ```",
    "fences": "```\n",
    "headings": "# a\n",
    "hashes": "#",
    "emphasis": "*a **b _c ",
    "brackets": "[",
    "numbered brackets": "[1, ",
    "tags": "<",
    "tags with spaces": "< / ",
    "hidden tags": "<\u200b",
    "tag names": "<passage",
    "turns": "<|a",
    "full-width turns": "<｜a",
    "html": "<p><b>",
    "cells": "|a",
    "rows": "|a|b|\n",
    "lists": "- a\n",
    "hyphens": "a-",
    "apostrophes": "a'",
    "points": "...",
    "exclamations": "!",
    "thai": "\u0e01\u0e32",
    "chinese": "\u4e2d",
    "surrogates": "\ud800",
    "nothing": "\u200b",
}
"""What is repeated."""

READERS: Final[dict[str, Callable[[str], object]]] = {
    "nfc": nfc,
    "is_blank": is_blank,
    "normalise": lambda text: [normalise(text[at : at + LONGEST]) for at in range(0, len(text), LONGEST)],
    "normalise, whole": normalise,
    "tidied": tidied,
    "first_heading": lambda text: first_heading(f"# {text}"),
    "disagreement": lambda text: disagreement(text, f"{text} b"),
}


def seconds(read: Callable[[str], object], text: str) -> float:
    """CPU time of this thread."""
    gc.disable()
    try:
        before = time.thread_time()
        read(text)
        return time.thread_time() - before
    finally:
        gc.enable()


def ratio(read: Callable[[str], object], unit: str) -> float:
    """How many times longer four times the text takes."""
    length = 1_000
    while True:
        long = seconds(read, unit * (4 * length // len(unit)))
        if long >= LEAST_SECONDS or 4 * length >= LONGEST_TEXT:
            break
        length *= 2
    if long < LEAST_SECONDS:
        return 1.0
    short = min(seconds(read, unit * (length // len(unit))) for _ in range(2 if long < MOST_SECONDS else 1))
    return long / max(short, LEAST_SECONDS / 16)


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_four_times_the_text_takes_about_four_times_as_long(read: Callable[[str], object], unit: str) -> None:
    found: list[float] = []
    while not found or (found[-1] > MOST_RATIO and len(found) < ATTEMPTS):
        found.append(ratio(read, unit))
    assert min(found) <= MOST_RATIO, f"{found} times as long for four times the text"
