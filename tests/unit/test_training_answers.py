"""The answers written for training, and how they become labeled pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from scripts.measure_comparator import longer_pairs, pairs_of, written_pairs
from training.answers import InvalidAnswers, answer_sets

BLOCK = """? How long is it?
= It takes 5 days.
= Five days.
! 1 5 days => 5 weeks
+ 1 It takes => You wait
~ It is free."""


def write(path: Path, text: str) -> Path:
    file = path / "answers.txt"
    file.write_text(text, "utf-8")
    return file


def test_a_block_becomes_pairs_whose_label_is_certain(tmp_path: Path) -> None:
    [found] = answer_sets(write(tmp_path, BLOCK))
    labels = {frozenset((pair.one, pair.other)): pair.same for pair in found.pairs()}
    first, second, weeks, wait, free = (
        "It takes 5 days.",
        "Five days.",
        "It takes 5 weeks.",
        "You wait 5 days.",
        "It is free.",
    )
    assert labels == {
        frozenset((first, second)): True,
        frozenset((first, wait)): True,
        frozenset((second, wait)): True,
        frozenset((first, weeks)): False,
        frozenset((second, weeks)): False,
        frozenset((first, free)): False,
        frozenset((second, free)): False,
    }
    assert {pair.family for pair in found.pairs()} == {"how long is it?"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("= no question", "not a question"),
        ("? Q?\n* what", "unknown sign"),
        ("? Q?\n= A.\n! 1 old", "not an edit"),
        ("? Q?\n= A.\n! 1 B => C", "not in answer 1"),
        ("? Q?\n= A.\n! 2 A => C", "not in answer 2"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InvalidAnswers, match=message):
        answer_sets(write(tmp_path, line))


def test_the_written_answers_are_many_and_of_both_labels() -> None:
    pairs = [pair for one in answer_sets() for pair in one.pairs()]
    assert len(answer_sets()) > 300
    counts = Counter(pair.same for pair in pairs)
    assert counts[True] > 900
    assert counts[False] > 3_500
    assert all(pair.one != pair.other for pair in pairs)


@pytest.mark.slow
def test_no_question_is_trained_on_and_measured() -> None:
    measured = {pair.one.question.lower() for half in ("held-out", "test", "blind") for pair in pairs_of(half)}
    assert not measured & {pair.one.question.lower() for pair in longer_pairs()}
    learned = [*longer_pairs(), *written_pairs(), *pairs_of("blind")]
    assert not {pair.one.question.lower() for pair in pairs_of("unseen")} & {pair.family for pair in learned}
