"""Which questions are the same to the letter, and which never are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.query.normalise import INVISIBLE, normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is Python?", "what is python"),
        ("What is   Python ?!", "What is\tPython"),
        ("ＷＨＡＴ is Python？", "what is python?"),
        ("Café?", "Cafe\u0301"),
        ("straße", "STRASSE"),
        ("The \ufb01le", "The file"),
        ("１２３ apples", "123 apples"),
        ("pass\u200bword", "password"),
        ("pass\u00adword\ufeff", "password"),
        ("\u202eWhat is it\u202c", "What is it"),
        ("I \u2764\ufe0f it", "I \u2764 it"),
        ("WHAT IS IT?", "What is it?"),
        ("WHO IS IT", "who is it"),
        ("Is that so...", "Is that so?"),
        ("Wow!", "wow"),
    ],
)
def test_the_same_question_typed_otherwise(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2²?", "What is 22?"),
        ("What is H₂O?", "What is H2O-?"),
        ("What is ½?", "What is 1⁄2?"),
        ("Is it on?", "Is it not on?"),
        ("What is C?", "What is C++?"),
        ("What is C?", "What is C#?"),
        ("Say a.b", "Say ab"),
        ("Who let the dogs out", "Who let the dog's out"),
        ("1.5 miles", "15 miles"),
        ("-5 degrees", "5 degrees"),
        ("?", "!"),
        ("What is IT?", "What is it?"),
        ("Who is the head of the WHO?", "Who is the head of the who?"),
        ("Is the US far?", "Is the us far?"),
        ("What is 5!?", "What is 5?"),
        ("What is n!", "What is n"),
        ("10^2", "102"),
        ("a & b", "a b"),
        ("x > y", "x < y"),
        ("$5", "5"),
        ("50%", "50"),
        ("@home", "home"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),
    ],
)
def test_questions_of_different_meaning_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text(min_size=1))
def test_it_is_stable_and_never_empties_a_question(question: str) -> None:
    once = normalise(question)
    assert normalise(once) == once
    assert once or not question.translate(INVISIBLE).strip()
