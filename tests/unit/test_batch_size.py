"""The adaptive batch size of embedding calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.values import FIRST_TEXTS, BatchSize


def sizes(seconds_a_text: float, calls: int, size: BatchSize | None = None) -> list[int]:
    """Returns the sizes of consecutive calls if a text always takes the same time."""
    size, found = size or BatchSize(), []
    for _ in range(calls):
        found.append(size.texts)
        size = size.after(size.texts, size.texts * seconds_a_text)
    return found


def test_it_grows_to_its_maximum_while_calls_are_fast() -> None:
    assert sizes(0.001, 5) == [FIRST_TEXTS, 8, 16, 32, 32]


def test_it_shrinks_when_texts_are_slow() -> None:
    assert sizes(0.3, 3) == [FIRST_TEXTS, 1, 1]
    assert sizes(0.1, 3, BatchSize(32)) == [32, 5, 5]


def test_it_stays_when_calls_take_the_target_time() -> None:
    assert sizes(0.1, 3) == [4, 4, 4]


def test_a_short_last_batch_does_not_grow_it() -> None:
    assert BatchSize(8).after(1, 0.01).texts == 8


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1000)), max_size=50), st.integers(1, 64))
def test_it_is_always_within_its_bounds(calls: list[tuple[int, float]], most: int) -> None:
    size = BatchSize(1, most)
    for texts, seconds in calls:
        size = size.after(texts, seconds).halved() if seconds > 900 else size.after(texts, seconds)
        assert 1 <= size.texts <= most


@given(st.floats(0.0001, 2.0))
def test_it_settles_within_the_target_unless_a_single_text_exceeds_it(seconds_a_text: float) -> None:
    last = sizes(seconds_a_text, 12)[-1]
    assert last == 1 or last * seconds_a_text <= BatchSize().target
