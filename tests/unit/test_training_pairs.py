"""Pairs of questions: their file, the pairs that the service kept, and the split into parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ports.answer_quality import LabelledPair, Verdict
from training.pairs import InvalidPairs, Pair, from_kept, read_pairs, split

QUESTIONS = st.integers(0, 400).map(lambda number: f"question {number}")
PAIRS = st.lists(st.builds(Pair, QUESTIONS, QUESTIONS, st.booleans()), max_size=60)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def test_reads_pairs_and_skips_blank_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", {"a": "A?", "b": "B?", "same": True, "scope": "s"}, "", {
        "a": "C?", "b": "D?", "same": False
    })  # fmt: skip
    assert read_pairs(file) == [Pair("A?", "B?", True, "s"), Pair("C?", "D?", False)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({"a": "A?", "same": True}, "must be questions"),
        ({"a": "A?", "b": " ", "same": True}, "must be questions"),
        ({"a": "A?", "b": "B?", "same": "yes"}, "must be true or false"),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, row: object, why: str) -> None:
    file = write(tmp_path / "pairs.jsonl", {"a": "A?", "b": "B?", "same": True}, row)
    with pytest.raises(InvalidPairs, match=f"line 2.*{why}"):
        read_pairs(file)


def test_an_empty_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPairs, match="has no pairs"):
        read_pairs(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InvalidPairs, match="cannot read"):
        read_pairs(tmp_path / "missing.jsonl")


def test_kept_pairs_count_once_with_their_newest_verdict_and_without_unsure_ones() -> None:
    kept = [
        LabelledPair("asked", "cached", Verdict.DIFFERENT, "scope"),
        LabelledPair("asked", "cached", Verdict.SAME, "scope"),
        LabelledPair("other", "cached", Verdict.UNSURE, "scope"),
        LabelledPair("third", "cached", Verdict.SAME, "scope"),
    ]
    assert from_kept(kept) == [Pair("cached", "asked", False, "scope"), Pair("cached", "third", True, "scope")]


@pytest.mark.slow
@given(PAIRS)
def test_the_split_keeps_every_pair_once(pairs: list[Pair]) -> None:
    found = split(pairs)
    parts = [*found.train, *found.calibration, *found.held_out]
    assert sorted(map(repr, parts)) == sorted(map(repr, pairs))
    assert len(found.held_out_clusters) == len(found.held_out)


@pytest.mark.slow
@given(PAIRS)
def test_no_question_of_a_held_out_cluster_is_trained_on(pairs: list[Pair]) -> None:
    """Questions with the same answer are a cluster, however indirectly: the other half would give the answer away."""
    found = split(pairs)
    trained = {text for pair in found.train for text in (pair.first, pair.second)}
    for pair in found.held_out:
        if pair.same:
            assert not {pair.first, pair.second} & trained
        else:
            assert not {pair.first, pair.second} <= trained


def test_a_cluster_stays_in_its_part_while_pairs_are_added() -> None:
    early = [Pair(f"a {number}", f"b {number}", True) for number in range(200)]
    late = [Pair(f"c {number}", f"d {number}", True) for number in range(200)]
    before, after = split(early), split(early + late)
    assert set(before.held_out) <= set(after.held_out)
    assert set(before.train) <= set(after.train)
    assert 15 <= len(before.held_out) <= 45  # 15 % of 200


def test_a_cluster_of_a_quarter_of_the_pairs_is_trained_on() -> None:
    """Held out, it would leave too little to train on."""
    for name in range(20):
        large = [Pair(f"{name}", f"{name} {number}", True) for number in range(100)]
        small = [Pair(f"s {number}", f"t {number}", True) for number in range(100)]
        assert set(large) <= set(split(large + small).train)


def test_questions_that_differ_in_case_and_punctuation_are_one() -> None:
    pairs = [Pair(f"Is it {number}?", f"it is {number}", True) for number in range(300)]
    twins = [Pair(f"is  it {number}", f"Other {number}", True) for number in range(300)]
    found = split(pairs + twins)
    held_out = {pair.first.lower().strip("?").replace("  ", " ") for pair in found.held_out}
    trained = {pair.first.lower().strip("?").replace("  ", " ") for pair in found.train}
    assert held_out
    assert not held_out & trained
