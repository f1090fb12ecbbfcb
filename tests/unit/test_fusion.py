"""The mix of meaning and words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.knowledge.ranking import FEW, SMALL, WORDS, mixed

STRONG = 30.0
cosine_maps = st.dictionaries(st.integers(0, 9), st.floats(-1, 1), max_size=8)
word_rankings = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 50)), max_size=8, unique_by=lambda one: one[0]), max_size=3
)


def test_a_single_ranking_is_unchanged() -> None:
    assert mixed({"b": 0.9, "a": 0.5, "c": 0.1}, []) == ["b", "a", "c"]
    assert mixed({}, [[("b", 9.0), ("a", 5.0), ("c", 1.0)]]) == ["b", "a", "c"]


def test_an_item_in_both_rankings_precedes_an_item_in_one() -> None:
    assert mixed({"a": 0.52, "b": 0.5}, [[("b", STRONG)]])[0] == "b"


def test_meaning_decides_where_cosines_are_far_apart() -> None:
    assert mixed({"meaning": 0.5 + WORDS, "words": 0.5}, [[("words", STRONG)]]) == ["meaning", "words"]


def test_how_much_better_the_words_match_counts_and_not_only_their_rank() -> None:
    near = [("a", STRONG), ("b", 0.9 * STRONG)]
    far = [("a", STRONG), ("b", 0.2 * STRONG)]
    cosines = {"b": 0.53, "a": 0.5}
    assert [mixed(cosines, [ranking])[0] for ranking in (near, far)] == ["b", "a"]


def test_a_single_common_word_hardly_counts() -> None:
    cosines: dict[object, float] = dict.fromkeys(range(SMALL), 0.4)
    cosines |= {"b": 0.52, "a": 0.5}
    assert [mixed(cosines, [[("a", best)]])[0] for best in (1.0, STRONG)] == ["b", "a"]
    assert mixed({"b": 0.52, "a": 0.5}, [[("a", 1.0)]])[0] == "a", "in a small corpus all BM25 scores are low"


@pytest.mark.parametrize(("spread", "first"), [(0.4, "words"), (0.01, 0)])
def test_words_count_less_for_an_embedder_whose_cosines_are_close(spread: float, first: object) -> None:
    """The passage with the words is 0.02 behind, which says little for one embedder and much for the other."""
    cosines: dict[object, float] = {number: 0.5 - spread * number / FEW for number in range(FEW)}
    cosines["words"] = 0.5 - min(0.02, spread)
    assert mixed(cosines, [[("words", STRONG)]])[0] == first


def test_a_passage_without_a_vector_ranks_by_meaning_as_it_does_by_words() -> None:
    assert mixed({"a": 0.9, "b": 0.3}, [[("new", STRONG), ("b", 1.0)]]) == ["new", "a", "b"]
    assert mixed({"a": 0.9, "b": 0.3}, [[("b", STRONG), ("new", 15.0)]])[0] == "a"
    assert mixed({"a": 0.9, "b": 0.3}, [[("a", STRONG)], [("new", 0.5)]])[0] == "new"  # of a small index


def test_equal_scores_keep_the_order_of_the_rankings() -> None:
    assert mixed({"a": 0.5, "b": 0.5}, []) == ["a", "b"]


@given(cosine_maps, word_rankings)
def test_every_item_appears_once(cosines: dict[int, float], words: list[list[tuple[int, float]]]) -> None:
    order = mixed(cosines, words)
    assert sorted(order) == sorted({*cosines, *(thing for ranking in words for thing, _ in ranking)})


@given(cosine_maps, st.lists(st.tuples(st.integers(0, 9), st.floats(0, 50)), max_size=8, unique_by=lambda one: one[0]))
def test_an_item_first_in_every_ranking_is_first(cosines: dict[int, float], words: list[tuple[int, float]]) -> None:
    order = mixed({**cosines, 10: 1.0}, [[(10, 50.0), *words]])
    assert order[0] == 10 or cosines.get(order[0]) == 1.0
