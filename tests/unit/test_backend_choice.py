"""The order in which backends are tried."""

from __future__ import annotations

from collections import Counter

import pytest

from api.backends.choice import BackendState, in_order

BEST = BackendState("best", reachable=True, has_model=True, resident=True)


@pytest.mark.parametrize(
    "worse",
    [
        BackendState("worse", rejects=True, reachable=True, has_model=True, resident=True),
        BackendState("worse", reachable=False),
        BackendState("worse", reachable=True, has_model=True, resident=False),
        BackendState("worse", reachable=True, has_model=True, resident=True, outstanding=1),
        BackendState("worse", reachable=True, has_model=True, resident=True, tier=2),
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


def test_a_higher_tier_comes_after_a_busy_or_loading_backend_and_before_one_that_does_not_answer() -> None:
    far = BackendState("far", reachable=True, has_model=True, resident=True, tier=2)
    loading = BackendState("loading", reachable=True, has_model=True, resident=False, outstanding=9)
    silent = BackendState("silent", reachable=False)
    assert in_order([far, silent, loading], 0) == ["loading", "far", "silent"]


def test_idle_backends_take_turns_by_weight() -> None:
    weighted = [BackendState("a", weight=1), BackendState("b", weight=3), BackendState("c", weight=2)]
    firsts = [in_order(weighted, turn)[0] for turn in range(60)]
    assert Counter(firsts) == {"a": 10, "b": 30, "c": 20}
    assert all(sorted(in_order(weighted, turn)) == ["a", "b", "c"] for turn in range(6))


def test_a_weight_is_the_share_of_the_calls_in_flight() -> None:
    calls = Counter[str]()
    for turn in range(60):
        states = [BackendState(name, outstanding=calls[name], weight=weight) for name, weight in (("a", 1), ("b", 3))]
        calls[in_order(states, turn)[0]] += 1
    assert calls == {"a": 15, "b": 45}
