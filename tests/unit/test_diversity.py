"""The chosen passages differ from each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.knowledge.diversity import diverse, is_copy, words_of

SHEET = "The lathe in hall four has the serial number 7Q-4821. It was serviced in May and is kept by Ada."


def chosen(scores: dict[str, float], alike: set[frozenset[str]], count: int, leading: int = 0) -> list[str]:
    """The chosen passages. Those in a pair of `alike` have a cosine of 1, others of 0."""
    found = diverse(
        list(scores.items()),
        count,
        lambda place: place,
        lambda one, other: float(frozenset((one, other)) in alike),
        leading,
    )
    return [place for place, _ in found]


@pytest.mark.parametrize(
    ("other", "copy"),
    [
        (SHEET.upper().lower().capitalize(), False),  # without capitals it may name something else
        (SHEET.replace("May and", "May, and"), True),
        (SHEET.replace("It was", "It is"), True),
        (SHEET.replace("is kept", "is not kept"), False),
        (SHEET.replace("4821", "4812"), False),
        (SHEET.replace("Ada", "Berta"), False),
        (SHEET + " Ask before you use it, as its chuck is worn.", False),
        ("", False),
    ],
)
def test_a_copy_has_the_same_numbers_and_names_and_nearly_the_same_words(other: str, copy: bool) -> None:
    assert is_copy(words_of(SHEET), words_of(other)) is copy


def test_near_copies_fill_one_place() -> None:
    one, two, other = "Meet at the north gate.", "Meet at the north gate!", "Do not use the lifts."
    assert chosen({one: 0.9, two: 0.8, other: 0.3}, set(), 2) == [one, other]


def test_a_passage_that_resembles_a_chosen_one_gives_way_to_another_that_is_nearly_as_relevant() -> None:
    pair = {frozenset(("a", "b"))}
    assert chosen({"a": 0.5, "b": 0.49, "c": 0.47}, pair, 2) == ["a", "c"]
    assert chosen({"a": 0.5, "b": 0.49, "c": 0.3}, pair, 2) == ["a", "b"]
    assert chosen({"a": 0.5, "b": 0.49, "c": 0.47}, pair, 2, leading=2) == ["a", "b"]


def test_a_passage_ahead_of_a_higher_score_keeps_its_place() -> None:
    """Rare terms and words put it there."""
    assert chosen({"a": 0.5, "b": 0.1, "c": 0.4}, set(), 2) == ["a", "b"]


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 5), st.integers(0, 3))
def test_as_many_as_there_are_and_the_first_stays(scores: list[float], count: int, leading: int) -> None:
    found = chosen({f"passage{number}": score for number, score in enumerate(scores)}, set(), count, leading)
    assert len(found) == len(set(found)) == min(count, len(scores))
    assert found[:1] == (["passage0"] if scores and count else [])
