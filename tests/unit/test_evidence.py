"""The evidence about a candidate: which answers the entries around it have, and how near they are."""

from __future__ import annotations

import math

import pytest

from api.quality.evidence import NearEntry, evidence_of


def near(*entries: tuple[float, str]) -> list[NearEntry]:
    return [NearEntry(similarity, group) for similarity, group in entries]


def test_the_nearest_other_answer_and_the_weights_of_both_sides() -> None:
    found = evidence_of(near((0.9, "a"), (0.8, "a"), (0.8, "b"), (0.7, "c")), 0)
    assert (found.similarity, found.other) == (0.9, 0.8)
    assert found.same == pytest.approx(1 + math.exp(-1))
    assert found.others == pytest.approx(math.exp(-1) + math.exp(-2))


def test_a_candidate_behind_another_answer_has_a_negative_margin() -> None:
    found = evidence_of(near((0.9, "a"), (0.8, "b"), (0.7, "b")), 1)
    assert (found.similarity, found.other) == (0.8, 0.9)
    assert found.others == pytest.approx(math.exp(1)), "a nearer entry counts more than one"


def test_if_all_agree_another_answer_is_assumed_just_beyond_the_farthest() -> None:
    found = evidence_of(near((0.9, "a"), (0.7, "a")), 0)
    assert found.other == pytest.approx(0.65)
    assert found.others == 0


def test_another_answer_is_never_assumed_farther_than_the_floor() -> None:
    assert evidence_of(near((0.9, "a"), (-0.2, "a")), 0).other == 0.3


def test_a_single_entry_is_its_own_group() -> None:
    found = evidence_of([NearEntry(0.97, "a", guard="numbers", verifier=-1.5)], 0)
    assert (found.same, found.others, found.guard, found.verifier) == (1.0, 0.0, "numbers", -1.5)
    assert found.other == pytest.approx(0.92)
