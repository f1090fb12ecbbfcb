"""The guards on labeled pairs of questions, and properties that hold for any question."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.guards.agreement import GUARDS, disagreement, read, verdicts
from api.guards.letter_case import chunks

pytestmark = pytest.mark.slow

LINES = (Path(__file__).parent / "guard_pairs.tsv").read_text("utf-8").splitlines()
PAIRS = [tuple(line.split("\t")) for line in LINES if line and not line.startswith("#")]
QUESTIONS = sorted({question for _, *both in PAIRS for question in both})
questions = st.sampled_from(QUESTIONS) | st.text(max_size=80)


@pytest.mark.parametrize(("verdict", "one", "other"), PAIRS)
def test_a_labeled_pair_is_judged_correctly(verdict: str, one: str, other: str) -> None:
    found = disagreement(one, other)
    if verdict == "same":
        assert found is None
    else:
        assert found is not None
        assert {said.guard for said in verdicts(one, other) if not said.agrees} >= {verdict}


def test_there_are_many_pairs_of_both_labels() -> None:
    assert len(PAIRS) > 100
    assert {verdict for verdict, *_ in PAIRS} == {"same", *(name for name, *_ in GUARDS)}


@given(questions)
def test_a_question_agrees_with_itself(question: str) -> None:
    assert disagreement(question, question) is None


@pytest.mark.parametrize("question", [one for one in QUESTIONS if not any(part.keeps_case for part in chunks(one))])
def test_case_and_final_punctuation_do_not_matter(question: str) -> None:
    bare = question.rstrip("?")
    for typed in (question.lower(), question.upper(), bare, bare + " ?", bare + "!!", f"  {question}  "):
        assert disagreement(question, typed) is None, typed


@given(questions, questions)
def test_the_verdict_is_symmetric(one: str, other: str) -> None:
    there, back = disagreement(one, other), disagreement(other, one)
    assert (there and there.guard) == (back and back.guard)


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\u2028", "\n\n- "])
def test_each_line_may_be_a_question(mark: str) -> None:
    found = disagreement(f"What is a visa{mark}Which visa do I need for Spain?", "Which visa do I need for Spain?")
    assert found is not None
    assert found.guard == "questions"


@pytest.mark.parametrize("blank", ["\u3000", "\xa0", "\n\x85", "?", "-"])
def test_a_text_without_words_has_features(blank: str) -> None:
    assert disagreement(blank, blank) is None


def test_features_can_replace_the_text() -> None:
    question = read("How do I enable 2FA?")
    for other in ("How do I disable 2FA?", "How can I enable 2FA?"):
        assert disagreement(question, other) == disagreement("How do I enable 2FA?", read(other))


def test_every_guard_reports_the_difference() -> None:
    said = {verdict.guard: verdict for verdict in verdicts("Can I pay 5 euros?", "Can't I pay 50 dollars?")}
    assert list(said) == [name for name, *_ in GUARDS]
    assert said["numbers"].detail == "5 / 50"
    assert said["names"].detail == "eur / usd"
    assert all(verdict.agrees == (not verdict.detail) for verdict in said.values())


@pytest.mark.parametrize("text", ["", " ", "?", "a" * 500, "-" * 500, "1," * 250, "x." * 250, '"' * 500, "not " * 125])
def test_unusual_texts_are_accepted(text: str) -> None:
    assert disagreement(text, text) is None
    assert len(verdicts(text, "What is Python?")) == len(GUARDS)
