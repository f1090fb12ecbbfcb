"""Selection of the served question among the nearest: by similarity, guards and age."""

from __future__ import annotations

from collections.abc import Sequence

from api.ports.question import CacheControl
from api.query.candidates import (
    Candidate,
    CandidateOutcome,
    ComparedQuestion,
    best,
    consider,
    lifetime,
    up_to_the_first_fresh,
)
from api.values import CachedAnswer, CacheMatch, Usage

ASKED = "How do I enable two-factor login?"
AGREES = "How can I enable two-factor login?"
OBJECTED = "How do I disable two-factor login?"
NOW = 1_000_000


def match(question: str, similarity: float, *, ttl: float = 60.0, age: float = 10.0) -> CacheMatch:
    answer = CachedAnswer(
        f"rag:cache:{question}", question, "text", "m", (), Usage(), NOW - round(age * 1000), NOW + round(ttl * 1000)
    )
    return CacheMatch(answer, "semantic", similarity, NOW)


def fates(matches: Sequence[CacheMatch], control: CacheControl | None = None, stale: float = 0.0) -> list[Candidate]:
    return list(consider(ComparedQuestion(ASKED), matches, 0.9, control or CacheControl(), stale))


def test_the_first_candidate_that_passes_all_guards_is_chosen() -> None:
    found = fates([match(OBJECTED, 0.98), match(AGREES, 0.95), match(ASKED, 0.93)])
    assert [one.fate for one in found] == [CandidateOutcome.REJECTED, CandidateOutcome.FRESH, CandidateOutcome.FRESH]
    assert found[0].objection is not None
    assert found[0].objection.guard == "opposites"
    chosen = best(found)
    assert chosen is not None
    assert chosen.match.answer.question == AGREES


def test_no_candidate_below_the_threshold_is_chosen() -> None:
    assert best(fates([match(AGREES, 0.899)])) is None
    assert best(fates([])) is None


def test_a_fresh_candidate_precedes_a_nearer_expired_one() -> None:
    matches = [match(ASKED, 0.99, ttl=-5), match(AGREES, 0.93)]
    assert [one.fate for one in fates(matches, stale=60)] == [CandidateOutcome.STALE, CandidateOutcome.FRESH]
    chosen = best(fates(matches, stale=60))
    assert chosen is not None
    assert chosen.match.answer.question == AGREES
    alone = best(fates(matches[:1], stale=60))
    assert alone is not None
    assert alone.fate is CandidateOutcome.STALE


def test_the_maximum_age() -> None:
    assert lifetime(match(ASKED, 1, ttl=0.001), CacheControl()) is CandidateOutcome.FRESH
    assert lifetime(match(ASKED, 1, ttl=0), CacheControl()) is CandidateOutcome.EXPIRED
    assert lifetime(match(ASKED, 1, ttl=-4.999), CacheControl(), 5) is CandidateOutcome.STALE
    assert lifetime(match(ASKED, 1, ttl=-5), CacheControl(), 5) is CandidateOutcome.EXPIRED
    assert lifetime(match(ASKED, 1, age=10), CacheControl(max_age=10)) is CandidateOutcome.FRESH
    assert lifetime(match(ASKED, 1, age=10.5), CacheControl(max_age=10)) is CandidateOutcome.TOO_OLD
    assert lifetime(match(ASKED, 1, ttl=-5, age=10.5), CacheControl(max_age=10), 60) is CandidateOutcome.TOO_OLD


def test_no_more_candidates_are_checked_than_necessary() -> None:
    matches = [match(OBJECTED, 0.98), match(AGREES, 0.95), match(OBJECTED, 0.94)]
    assert len(up_to_the_first_fresh(fates(matches))) == 2
    far = [match(OBJECTED, 0.95), match(AGREES, 0.8), match(AGREES, 0.7)]
    assert [one.fate for one in up_to_the_first_fresh(fates(far))] == [
        CandidateOutcome.REJECTED,
        CandidateOutcome.BELOW_THRESHOLD,
    ]
