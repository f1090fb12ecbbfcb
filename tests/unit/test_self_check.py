"""The check passes only with a semantic hit on this run's entry."""

from __future__ import annotations

from typing import Any

import pytest

from ragherd.self_check import CheckFailed, QueryResponse, require_semantic_hit

HIT = {"status": "hit", "kind": "semantic", "similarity": 0.975, "age_seconds": 1.2, "entry": "e"}


def response(**cache: Any) -> QueryResponse:
    """Returns an answer with the `cache` of a hit, changed by the given fields."""
    return QueryResponse("q", "w1", 0.002, {"answer": "a", "cache": HIT | cache})


def test_a_semantic_hit_of_this_run_passes() -> None:
    require_semantic_hit(response(), seconds_since_first=1.3)


@pytest.mark.parametrize(
    "cache",
    [{"status": "miss", "kind": None}, {"status": "hit", "kind": "exact"}, {"status": "stale"}, {"status": "bypass"}],
)
def test_anything_else_fails(cache: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="not a semantic hit"):
        require_semantic_hit(response(**cache), seconds_since_first=1.3)


def test_an_entry_of_an_earlier_run_fails() -> None:
    with pytest.raises(CheckFailed, match="earlier run"):
        require_semantic_hit(response(age_seconds=300.0), seconds_since_first=1.3)
