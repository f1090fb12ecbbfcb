"""The evidence about a candidate: which answers the entries around it have, and how near they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from api.ports.answer_quality import Verdict
from api.quality.evidence import (
    FRESH,
    MOST_OF_A_MISS,
    Grouped,
    NearEntry,
    Votes,
    concluded,
    evidence_of,
    grouped,
)


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


Same, Different, Unsure = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


def group_of_fresh(
    groups: list[str],
    verdicts: dict[tuple[int, int], Verdict],
    *,
    is_stored: bool = True,
    most: int = MOST_OF_A_MISS,
    first: Sequence[str] = (),
) -> tuple[Grouped, list[tuple[int, int]]]:
    """Compares as asked. Pairs without a verdict are different. Returns the result and the pairs."""
    asked: list[tuple[int, int]] = []

    def verdict(one: int, other: int) -> Verdict:
        asked.append((one, other))
        return verdicts.get((one, other), Different)

    return concluded(grouped(groups, is_stored=is_stored, most=most, first=first), verdict), asked


def test_two_equal_verdicts_on_a_group_are_enough() -> None:
    found, asked = group_of_fresh(["a"] * 5, {(FRESH, place): Same for place in range(5)})
    assert (found.votes["a"], list(found.joined)) == (Votes(Same, 2), ["a"])
    assert asked == [(FRESH, 0), (FRESH, 1)]


@pytest.mark.parametrize(
    ("verdicts", "majority"),
    [
        ([Different, Same, Same, Same], 2),
        ([Same, Different, Same, Same], 2),
        ([Unsure, Unsure, Unsure, Same], 1),
        ([Unsure, Unsure, Unsure, Unsure], 0),
        ([Different, Same, Different, Same], 0),
        ([Same, Different, Different, Different], -2),
    ],
)
def test_the_majority_of_a_group_counts(verdicts: list[Verdict], majority: int) -> None:
    found, _ = group_of_fresh(["a"] * 9, {(FRESH, place): one for place, one in enumerate(verdicts)})
    assert found.votes["a"] == Votes(verdicts[0], majority)
    assert list(found.joined) == (["a"] if majority > 0 else [])


def test_a_narrow_majority_of_two_members_that_disagree_leaves_it_open() -> None:
    found, _ = group_of_fresh(["a", "a", "a"], {(FRESH, 0): Same, (FRESH, 2): Same})
    assert (found.votes["a"], list(found.joined)) == (Votes(Same, 0), [])


def test_a_fresh_answer_joins_the_group_that_agrees_most() -> None:
    verdicts = {(FRESH, 0): Same, (FRESH, 1): Same, (FRESH, 2): Same}
    found, _ = group_of_fresh(["a", "b", "b"], verdicts)
    assert list(found.joined) == ["b"]


def test_groups_merge_only_if_their_own_answers_are_the_same() -> None:
    verdicts = {(FRESH, place): Same for place in range(4)}
    apart, asked = group_of_fresh(["a", "a", "b", "b"], verdicts)
    assert (list(apart.joined), asked[4:]) == (["a"], [(0, 2), (0, 3)])
    merged, _ = group_of_fresh(["a", "a", "b", "b"], verdicts | {(0, 2): Same, (0, 3): Same})
    assert list(merged.joined) == ["a", "b"]


def test_one_wrong_verdict_between_two_groups_keeps_them_apart_only_for_now() -> None:
    verdicts = {(FRESH, place): Same for place in range(4)} | {(0, 3): Same, (1, 2): Same, (1, 3): Same}
    found, _ = group_of_fresh(["a", "a", "b", "b"], verdicts)
    assert list(found.joined) == ["a", "b"]


def test_an_answer_that_was_not_stored_joins_no_group() -> None:
    found, asked = group_of_fresh(["a", "b"], {(FRESH, 0): Same, (FRESH, 1): Same}, is_stored=False)
    assert (list(found.joined), asked) == ([], [(FRESH, 0), (FRESH, 1)])


def test_a_miss_is_compared_with_few_answers_the_most_informative_first() -> None:
    groups = list("abcdefghij")
    found, asked = group_of_fresh(groups, {}, most=4, first=["a", "h"])
    assert asked == [(FRESH, 0), (FRESH, 7), (FRESH, 1), (FRESH, 2)]
    assert set(found.votes) == {"a", "b", "c", "h"}


def test_no_miss_takes_many_comparisons_even_if_every_verdict_is_contested() -> None:
    contested = {(one, other): (Same, Different)[(one + other) % 2] for one in range(-1, 10) for other in range(10)}
    for groups in (list("aabbccddee"), list("abcdefghij"), ["a"] * 10):
        _, asked = group_of_fresh(groups, contested)
        assert len(asked) < MOST_OF_A_MISS + 4
        _, asked = group_of_fresh(groups, dict.fromkeys(contested, Same))
        assert len(asked) < MOST_OF_A_MISS + 4


def test_of_equal_groups_the_nearest_is_joined_whichever_was_compared_first() -> None:
    found, _ = group_of_fresh(["a", "b"], {(FRESH, 0): Same, (FRESH, 1): Same}, first=["b"])
    assert list(found.joined) == ["a"]
