"""Which questions count as equal in the exact tier, and which never do."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.query.cache_key import LONGEST, normalise, question_digest


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
def test_variants_in_typing_share_a_key(one: str, other: str) -> None:
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
@example("\u00ad")
def test_normalization_is_idempotent_and_never_empties_a_question(question: str) -> None:
    once = normalise(question)
    assert normalise(once) == once
    assert once or not question.strip()


@pytest.mark.parametrize(
    ("question", "digest"),
    [
        ("What is Python?", "1650d7f2c2ca8b346479e6db6d0e99c5"),
        ("  How long is the warranty ?! ", "dea7376e492e70f1f9769a786054f50d"),
        ("Café, naïve, Ångström: what is 2²?", "61ae8b2ad0474385f4d1ff19cf990493"),
        ("Who is the head of the WHO?", "0be195e3a8eb8e5143625b231e4ea476"),
        ("ＷＨＡＴ ｉｓ ﬁre ½？", "828edd85b914e6f1acb54ea49d840711"),
        ("谁批准报销？", "bfca6ece0cd3a251350673af3f64c808"),
        ("यह क्या है?", "c1cad792f010c6ede5f88162c436b5d8"),
        ("Tiếng Việt có bao nhiêu dấu?", "8114b91a12dd599e65dd58c4d5750cee"),
        ("ما هو \ufdfa", "b0d346f4ff0f4cbb57e831ebbfd5c4e7"),
    ],
)
def test_keys_are_stable_across_upgrades(question: str, digest: str) -> None:
    assert question_digest(question) == digest


MARKS = "\u0315\u0300"


def test_long_runs_of_combining_marks_still_distinguish_questions() -> None:
    assert normalise(f"a{MARKS * 40}\u0301") != normalise(f"a{MARKS * 40}\u0302")
    assert normalise(f"a{MARKS * 40}") != normalise(f"a{MARKS * 41}")
    assert normalise(normalise(f"a{MARKS * 40}")) == normalise(f"a{MARKS * 40}")


def test_a_long_prompt_is_hashed_unchanged() -> None:
    prompt = "É" + "e\u0301" * LONGEST
    assert normalise(prompt) == prompt
    assert normalise(prompt[:LONGEST]) == "é" + "é" * (LONGEST // 2 - 1) + "e"
