"""The checker of histories accepts what could have happened one at a time, and nothing else."""

from __future__ import annotations

import pytest

from scripts.chaos_tools.linearizability import (
    NEVER,
    Operation,
    Specification,
    cache,
    faults,
    is_linearizable,
    register,
)

Row = tuple[str, object, float, float]


def history(*rows: Row) -> list[Operation]:
    return [Operation("key", name, value, begin, end) for name, value, begin, end in rows]


@pytest.mark.parametrize(
    ("specification", "rows"),
    [
        (register, [("read", None, 0, 1), ("write", 1, 2, 3), ("read", 1, 4, 5)]),
        # A read that overlaps a write may see either value.
        (register, [("write", 1, 0, 10), ("read", None, 1, 2), ("read", 1, 3, 4)]),
        # Two writes at once: the readers agree on their order.
        (register, [("write", 1, 0, 9), ("write", 2, 0, 9), ("read", 2, 10, 11), ("read", 2, 12, 13)]),
        # A write without a reply may take effect much later, or never.
        (register, [("write", 1, 0, NEVER), ("read", None, 5, 6), ("read", 1, 7, 8)]),
        (register, [("write", 1, 0, NEVER), ("read", None, 5, 6)]),
        # The classic example of a queue's paper, as a register: an order exists, but not that of the beginnings.
        (register, [("write", 1, 0, 5), ("read", 2, 1, 4), ("write", 2, 2, 3)]),
        (cache, [("store", 1, 0, 2), ("find", 1, 3, 4), ("delete", None, 5, 6), ("store", 2, 7, 8), ("find", 2, 9, 9)]),
        (cache, [("store", 1, 0, 9), ("delete", None, 1, 2), ("find", 1, 10, 11)]),
    ],
)
def test_what_could_have_happened_one_at_a_time_is_accepted(specification: Specification, rows: list[Row]) -> None:
    assert is_linearizable(history(*rows), specification)


@pytest.mark.parametrize(
    ("specification", "rows"),
    [
        # A read after a confirmed write sees an old value.
        (register, [("write", 1, 0, 1), ("write", 2, 2, 3), ("read", 1, 4, 5)]),
        # A value comes back: the second reader began after the first had seen the new value.
        (register, [("write", 1, 0, 10), ("read", 1, 1, 2), ("read", None, 3, 4)]),
        # Two readers disagree about the order of two writes.
        (register, [("write", 1, 0, 1), ("write", 2, 0, 1), ("read", 1, 2, 3), ("read", 2, 4, 5)]),
        # A value that nobody wrote.
        (register, [("read", 1, 0, 1)]),
        # A deleted answer comes back.
        (cache, [("store", 1, 0, 1), ("delete", None, 2, 3), ("find", 1, 4, 5)]),
        # An answer is found before its generation began.
        (cache, [("find", 1, 0, 1), ("store", 1, 2, 3)]),
    ],
)
def test_what_could_not_is_refused(specification: Specification, rows: list[Row]) -> None:
    assert not is_linearizable(history(*rows), specification)


def test_each_key_is_checked_by_itself() -> None:
    right = Operation("right", "write", 1, 0, 1), Operation("right", "read", 1, 2, 3)
    wrong = Operation("wrong", "write", 1, 0, 1), Operation("wrong", "read", 2, 2, 3)
    assert faults((*right, *wrong), register) == ["wrong"]


@pytest.mark.slow
def test_a_long_history_is_checked_in_linear_time() -> None:
    """Three clients that overlap all the time: without the memo, this search would take years."""
    rows: list[Row] = [("write", number // 3, number, number + 2.5) for number in range(600)]
    impossible: Row = ("read", -1, 700, 701)
    assert is_linearizable(history(*rows), register)
    assert not is_linearizable(history(*rows, impossible), register)


@pytest.mark.slow
def test_a_long_history_is_checked_in_parts() -> None:
    """As a whole, these 60,000 operations would take minutes."""
    rows: list[Row] = []
    for at in range(0, 80_000, 4):
        rows += [("write", at, at, at + 2), ("read", at, at + 1, at + 3), ("write", f"never seen {at}", at, NEVER)]
    rows.append(("write", "seen", 80_001, NEVER))
    rows.append(("read", "seen", 80_010, 80_011))
    assert is_linearizable(history(*rows), register)
    assert not is_linearizable(history(*rows, ("read", 0, 90_000, 90_001)), register)
