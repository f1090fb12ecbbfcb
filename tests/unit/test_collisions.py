"""The search for colliding questions tells a hit, a question that a guard refuses, and one that is not similar."""

from __future__ import annotations

import pytest

from scripts.bench_collisions import Search

pytestmark = pytest.mark.slow
VICTIM = "What was the population of India in 2020?"


@pytest.mark.parametrize(
    ("attacker", "similar", "hit"),
    [
        (VICTIM, True, True),
        ("What was the population of India in 2021?", True, False),
        ("Who wrote the anthem of Peru?", False, False),
    ],
)
def test_an_attempt_is_judged_as_the_cache_would(attacker: str, similar: bool, hit: bool) -> None:
    attempt = Search(tries=0).attack([attacker], VICTIM)
    assert (attempt.similar, attempt.hit) == (similar, hit)
    assert bool(attempt.guards) or not similar or hit
