"""Runs of combining marks are limited as in UAX #15, and no mark is lost."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.unicode_text import JOINER, MAX_MARKS, is_blank, nfc, with_limited_marks

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
def test_a_joiner_follows_every_30_marks(text: str, limited: str) -> None:
    assert with_limited_marks(text) == limited


@given(st.text(st.sampled_from(f"a\u1100{MARKS}"), max_size=200))
@example("\u0315\u0300" * 100)
def test_runs_are_bounded_and_no_mark_is_lost(text: str) -> None:
    limited = with_limited_marks(text)
    assert limited.replace(JOINER, "") == text
    assert with_limited_marks(limited) == limited
    assert longest_run(unicodedata.normalize("NFD", limited)) <= MAX_MARKS


@pytest.mark.slow
@given(st.text())
def test_ordinary_text_is_normalized_to_nfc(text: str) -> None:
    if longest_run(unicodedata.normalize("NFD", text)) <= MAX_MARKS:
        assert nfc(text) == unicodedata.normalize("NFC", text)


def longest_run(decomposed: str) -> int:
    longest = marks = 0
    for character in decomposed:
        marks = marks + 1 if unicodedata.combining(character) else 0
        longest = max(longest, marks)
    return longest


@pytest.mark.slow
def test_text_without_visible_characters_is_blank() -> None:
    visible = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
    visible |= {"\U000110bd", "\U000110cd"}
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in {"Cc", "Cf", "Zs", "Zl", "Zp"}:
            assert is_blank(character) is (character not in visible), hex(number)
        elif unicodedata.category(character)[0] in "NPS" and character not in "\u2800\ufffc\U0001d159":
            assert not is_blank(character), hex(number)


@pytest.mark.parametrize("text", ["", " \u200b", "\u3164", "\u034f\ufe0f"])
def test_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "?", "\u0301", "\U0001f468\u200d\U0001f469", "\ue000", "\u2014"])
def test_not_blank(text: str) -> None:
    assert not is_blank(text)
