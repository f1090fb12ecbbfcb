"""The search for colliding questions tells a hit, a question that a guard refuses, and one that is not similar."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench_collisions import QUESTIONS, Search, questions_of

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


def test_a_file_has_one_question_a_line(tmp_path: Path) -> None:
    file = tmp_path / "asked"
    file.write_text('# Two\nWhat is red?\n\n"What is blue?"\n{"question": "What is red?", "answer": "A color."}\n')
    assert questions_of(str(file)) == ["What is blue?", "What is red?"]
    file.write_text('{"answer": "A color."}\n')
    with pytest.raises(ValueError, match="no question"):
        questions_of(str(file))
    assert len(questions_of(str(QUESTIONS))) > 300
