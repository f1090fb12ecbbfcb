"""The order in which backends are tried."""

from __future__ import annotations

from collections import Counter

import pytest

from api.backends.failover import BackendState, in_order

BEST = BackendState("best", reachable=True, has_model=True, resident=True)


@pytest.mark.parametrize(
    "worse",
    [
        BackendState("worse", rejects=True, reachable=True, has_model=True, resident=True),
        BackendState("worse", reachable=False),
        BackendState("worse", reachable=True, has_model=True, resident=False),
        BackendState("worse", reachable=True, has_model=True, resident=True, outstanding=1),
    ],
)
@pytest.mark.parametrize("turn", [0, 1])
def test_each_disadvantage_moves_a_backend_back(worse: BackendState, turn: int) -> None:
    assert in_order([worse, BEST], turn) == ["best", "worse"]
    assert in_order([BEST, worse], turn) == ["best", "worse"]


def test_a_worse_disadvantage_outweighs_all_lesser_ones() -> None:
    busy = BackendState("busy", reachable=True, has_model=True, resident=True, outstanding=9)
    loading = BackendState("loading", reachable=True, has_model=True, resident=False, outstanding=3)
    silent = BackendState("silent", reachable=False)
    rejecting = BackendState("rejecting", rejects=True, reachable=True, has_model=True, resident=True)
    assert in_order([rejecting, silent, loading, busy], 0) == ["busy", "loading", "silent", "rejecting"]


def test_a_backend_without_the_model_is_left_out_unless_all_are() -> None:
    without = BackendState("without", reachable=True, has_model=False)
    assert in_order([without, BackendState("rejecting", rejects=True)], 0) == ["rejecting"]
    assert in_order([without], 0) == ["without"]


def test_unknown_state_is_no_disadvantage() -> None:
    assert (
        in_order([BackendState("loading", reachable=True, has_model=True, resident=False), BackendState("new")], 0)[0]
        == "new"
    )


def test_equal_backends_alternate() -> None:
    equals = [BackendState(name) for name in "abc"]
    assert Counter(in_order(equals, turn)[0] for turn in range(30)) == {"a": 10, "b": 10, "c": 10}
    assert in_order(equals, 1) == ["b", "c", "a"]


def test_no_backends_give_an_empty_order() -> None:
    assert in_order([], 3) == []
