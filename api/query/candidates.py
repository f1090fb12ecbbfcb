"""Which of the nearest cached questions, if any, answers this one. Pure: the flow obeys it, and explain shows it.

Whether the vectors of two questions stand for all of them: only then does a high similarity mean anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from api.guards.agreement import Disagreement, Features, disagreement, read
from api.languages.identify import EVERY, Languages
from api.ports.question import CacheControl
from api.values import CachedAnswer, CacheMatch

PLAIN_WORD: Final = 100
"""Letters of the longest word that every embedder reads."""
PLAIN_TEXT: Final = 250
"""Characters that are surely read, however many tokens they make."""


@dataclass(frozen=True, slots=True)
class ComparedQuestion:
    """A question as the semantic tier compares it.

    `unread`: what the embedder could not read of it. `languages`: those that the embedder was made for.
    """

    question: str
    unread: tuple[str, ...] = ()
    languages: Languages = EVERY
    not_told: tuple[str, ...] = field(init=False)
    """All that the vector does not tell: what was not read, and words of scripts that the languages do not have."""
    language: str = field(init=False)
    """The question's language, where the embedder was not made for it; else an empty text."""

    def __post_init__(self) -> None:
        language, words = self.languages.read(self.question)
        object.__setattr__(self, "language", language)
        object.__setattr__(self, "not_told", _not_told(self.unread, words))


def incomparable(asked: ComparedQuestion, stored: CachedAnswer) -> Disagreement | None:
    """Why a stored question must not be compared by its vector, where that is so."""
    unread = _unread(stored)
    if unread is None:
        return Disagreement("unread", "not known of the cached question")
    language, words = asked.languages.read(stored.question)
    told = _not_told(unread, words)
    if told != asked.not_told:
        return Disagreement("unread", f"{' '.join(asked.not_told) or 'nothing'} / {' '.join(told) or 'nothing'}")
    return Disagreement("language", f"the cached question is in {language}") if language else None


def _not_told(unread: tuple[str, ...], words: Sequence[str]) -> tuple[str, ...]:
    return (*unread, *[word for word in words if word not in unread])


def _unread(stored: CachedAnswer) -> tuple[str, ...] | None:
    """None where it is not known: older releases did not store it."""
    if stored.unread is not None:
        return stored.unread
    text = stored.question
    is_plain = text.isascii() and len(text) <= PLAIN_TEXT and all(len(word) <= PLAIN_WORD for word in text.split())
    return () if is_plain else None


class CandidateOutcome(StrEnum):
    """What becomes of a candidate."""

    FRESH = "fresh"
    STALE = "stale"
    BELOW_THRESHOLD = "below_threshold"
    REJECTED = "rejected"
    TOO_OLD = "too_old"
    EXPIRED = "expired"


USABLE = frozenset({CandidateOutcome.FRESH, CandidateOutcome.STALE})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cached question near the asked one, and whether it may answer it. `objection`: the guard's, if one has any."""

    match: CacheMatch
    fate: CandidateOutcome
    objection: Disagreement | None = None


def consider(
    asked: ComparedQuestion,
    matches: Sequence[CacheMatch],
    threshold: float,
    control: CacheControl,
    stale_seconds: float = 0.0,
) -> Iterator[Candidate]:
    """The fate of each match, in their order. `stale_seconds`: how long after its lifetime one may still be served.

    Whoever needs no more than the first asks for no more: the guards take their time.
    """
    features = read(asked.question) if matches and matches[0].similarity >= threshold else None
    for match in matches:
        yield _considered(asked, features, match, threshold, control, stale_seconds)


def up_to_the_first_fresh(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that decide: none after one that is sure to be served, and none too far away after the first of these."""
    decisive: list[Candidate] = []
    for candidate in candidates:
        decisive.append(candidate)
        if candidate.fate in {CandidateOutcome.FRESH, CandidateOutcome.BELOW_THRESHOLD}:
            break
    return decisive


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first that is fresh, else the first that may be served stale: nearest first."""
    usable = [candidate for candidate in candidates if candidate.fate in USABLE]
    return next((one for one in usable if one.fate is CandidateOutcome.FRESH), usable[0] if usable else None)


def _considered(
    asked: ComparedQuestion,
    features: Features | None,
    match: CacheMatch,
    threshold: float,
    control: CacheControl,
    stale_seconds: float,
) -> Candidate:
    if features is None or match.similarity < threshold:
        return Candidate(match, CandidateOutcome.BELOW_THRESHOLD)
    objection = incomparable(asked, match.answer) or disagreement(features, match.answer.question)
    if objection is not None:
        return Candidate(match, CandidateOutcome.REJECTED, objection)
    return Candidate(match, lifetime(match, control, stale_seconds))


def lifetime(match: CacheMatch, control: CacheControl, stale_seconds: float = 0.0) -> CandidateOutcome:
    """Whether an entry of the right question is young enough: for its own lifetime, and for the caller."""
    if control.max_age is not None and match.age_seconds > control.max_age:
        return CandidateOutcome.TOO_OLD
    if match.is_fresh:
        return CandidateOutcome.FRESH
    return CandidateOutcome.STALE if match.stale_seconds < stale_seconds else CandidateOutcome.EXPIRED
