"""Runs of combining marks are limited as UAX #15 says, and no mark is lost."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.unicode_text import JOINER, MOST_MARKS, nfc, with_limited_marks

MARKS = "\u0315\u0300\u0344\u0f73\u0301"


@pytest.mark.parametrize(
    ("text", "limited"),
    [
        ("plain", "plain"),
        ("e" + "\u0301" * 30, "e" + "\u0301" * 30),
        ("e" + "\u0301" * 31, "e" + "\u0301" * 30 + JOINER + "\u0301"),
        ("e" + "\u0301" * 61, ("e" + "\u0301" * 30) + (JOINER + "\u0301" * 30) + (JOINER + "\u0301")),
        ("\u0344" * 16, "\u0344" * 15 + JOINER + "\u0344"),  # two marks each
        ("\u0f73" * 16, "\u0f73" * 15 + JOINER + "\u0f73"),  # marks once they are decomposed
        ("\u2014" * 40, "\u2014" * 40),  # no marks
        ("e\u0301" * 40, "e\u0301" * 40),
    ],
)
def test_a_joiner_stands_behind_every_30_marks(text: str, limited: str) -> None:
    assert with_limited_marks(text) == limited


@given(st.text(st.sampled_from(f"a\u1100{MARKS}"), max_size=200))
@example("\u0315\u0300" * 100)
def test_no_run_is_longer_and_nothing_is_lost(text: str) -> None:
    limited = with_limited_marks(text)
    assert limited.replace(JOINER, "") == text
    assert with_limited_marks(limited) == limited
    assert longest_run(unicodedata.normalize("NFD", limited)) <= MOST_MARKS


@given(st.text())
def test_a_text_that_people_write_is_normalised_as_ever(text: str) -> None:
    if longest_run(unicodedata.normalize("NFD", text)) <= MOST_MARKS:
        assert nfc(text) == unicodedata.normalize("NFC", text)


def longest_run(decomposed: str) -> int:
    longest = marks = 0
    for character in decomposed:
        marks = marks + 1 if unicodedata.combining(character) else 0
        longest = max(longest, marks)
    return longest
