"""Fusion of rankings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.knowledge.ranking import fused

rankings = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0]), st.lists(st.integers(0, 9), unique=True, max_size=8)), max_size=3
)


def test_a_single_ranking_is_unchanged() -> None:
    assert fused([(1.0, ["b", "a", "c"])]) == ["b", "a", "c"]


def test_an_item_in_both_rankings_precedes_an_item_in_one() -> None:
    assert fused([(1.0, ["a", "b"]), (1.0, ["c", "b"])])[0] == "b"


def test_the_ranking_with_more_weight_decides() -> None:
    assert fused([(0.5, ["words"]), (1.0, ["meaning"])]) == ["meaning", "words"]


def test_equal_scores_keep_the_order_of_the_rankings() -> None:
    assert fused([(1.0, ["a"]), (1.0, ["b"])]) == ["a", "b"]


@given(rankings)
def test_every_item_appears_once(given_rankings: list[tuple[float, list[int]]]) -> None:
    order = fused(given_rankings)
    assert sorted(order) == sorted({thing for _, ranking in given_rankings for thing in ranking})


@given(rankings, st.integers(0, 9))
def test_an_item_first_in_every_ranking_is_first(given_rankings: list[tuple[float, list[int]]], best: int) -> None:
    led = [(weight, [best, *(one for one in ranking if one != best)]) for weight, ranking in given_rankings]
    assert fused(led)[:1] == ([best] if led else [])
