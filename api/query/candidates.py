"""Decides which of the nearest cached questions, if any, answers this one. Pure; the flow and explain use it.

A high similarity only counts if the embedder could read both questions completely.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from api.guards.agreement import Disagreement, Features, disagreement, read
from api.languages.identify import EVERY, Languages
from api.ports.answer_cache import NearestSearch
from api.ports.answer_quality import PolicyName
from api.ports.question import CacheControl
from api.quality.evidence import NearEntry
from api.quality.policies import CANDIDATES_FROM, Rules
from api.query.cache_key import CacheKey
from api.values import CachedAnswer, CacheMatch

PLAIN_WORD: Final = 100
"""Letters of the longest word that every embedder reads."""
PLAIN_TEXT: Final = 250
"""Characters that every embedder reads, however many tokens they make."""


@dataclass(frozen=True, slots=True)
class ComparedQuestion:
    """A question as the semantic tier compares it.

    `unread`: the parts that the embedder could not read. `languages`: those that the embedder was trained for.
    """

    question: str
    unread: tuple[str, ...] = ()
    languages: Languages = EVERY
    not_told: tuple[str, ...] = field(init=False)
    """Parts that the vector does not cover: unread ones, and words in scripts of other languages."""
    language: str = field(init=False)
    """The question's language if the embedder was not trained for it; else empty."""

    def __post_init__(self) -> None:
        language, words = self.languages.read(self.question)
        object.__setattr__(self, "language", language)
        object.__setattr__(self, "not_told", _not_told(self.unread, words))


def incomparable(asked: ComparedQuestion, stored: CachedAnswer) -> Disagreement | None:
    """Returns the reason why a stored question must not be compared by its vector, or None."""
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
    """Returns None if it is unknown, because older releases did not store it."""
    if stored.unread is not None:
        return stored.unread
    text = stored.question
    is_plain = text.isascii() and len(text) <= PLAIN_TEXT and all(len(word) <= PLAIN_WORD for word in text.split())
    return () if is_plain else None


class CandidateOutcome(StrEnum):
    """The outcome for a candidate."""

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
    """Yields the outcome for each match, in order. `stale_seconds`: time after expiry in which one may be served.

    It is lazy, because the guards are slow: callers that need only the first outcome stop there.
    """
    features = read(asked.question) if matches and matches[0].similarity >= threshold else None
    for match in matches:
        yield _considered(asked, features, match, threshold, control, stale_seconds)


def up_to_the_first_fresh(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns the candidates up to the first that is fresh or below the threshold."""
    decisive: list[Candidate] = []
    for candidate in candidates:
        decisive.append(candidate)
        if candidate.fate in {CandidateOutcome.FRESH, CandidateOutcome.BELOW_THRESHOLD}:
            break
    return decisive


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Returns the nearest fresh candidate, else the nearest that may be served stale."""
    usable = [candidate for candidate in candidates if candidate.fate in USABLE]
    return next((one for one in usable if one.fate is CandidateOutcome.FRESH), usable[0] if usable else None)


def stored_by(now_ms: int, matches: Sequence[CacheMatch]) -> list[CacheMatch]:
    """Returns those that the look-up could find. Answers stored later only show which others are the same."""
    return [match for match in matches if match.answer.created_ms <= now_ms]


def guarded(asked: ComparedQuestion, features: Features, match: CacheMatch) -> NearEntry:
    """Returns an entry with the first guard that objects."""
    objection = incomparable(asked, match.answer) or disagreement(features, match.answer.question)
    return NearEntry(match.similarity, match.answer.group, objection.guard if objection is not None else "")


@dataclass(frozen=True, slots=True)
class Sight:
    """The input of a policy's decision. `candidates`: up to the first that may be served; `near`: all that were found.

    `usable`: the index of the candidate that may be served, if there is one.
    """

    candidates: Sequence[Candidate]
    near: Sequence[NearEntry]
    usable: frozenset[int]


def sighted(
    asked: ComparedQuestion,
    matches: Sequence[CacheMatch],
    rules: Rules,
    control: CacheControl,
    stale_seconds: float = 0.0,
) -> Sight:
    """Returns what a policy needs to know. The guards run up to the first candidate that may be served."""
    floor = CANDIDATES_FROM if rules.verifies else rules.threshold
    if rules.policy is PolicyName.FIXED:
        fates: Iterable[Candidate] = (_by_similarity(match, floor, control, stale_seconds) for match in matches)
    else:
        fates = consider(asked, matches, floor, control, stale_seconds)
    candidates = up_to_the_first_fresh(fates)
    chosen = best(candidates)
    guards = [one.objection.guard if one.objection is not None else "" for one in candidates]
    guards += [""] * (len(matches) - len(candidates))
    near = [
        NearEntry(match.similarity, match.answer.group, guard) for match, guard in zip(matches, guards, strict=True)
    ]
    return Sight(candidates, near, frozenset() if chosen is None else frozenset({candidates.index(chosen)}))


def _by_similarity(match: CacheMatch, threshold: float, control: CacheControl, stale_seconds: float) -> Candidate:
    if match.similarity < threshold:
        return Candidate(match, CandidateOutcome.BELOW_THRESHOLD)
    return Candidate(match, lifetime(match, control, stale_seconds))


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
    """Returns whether an entry is young enough, by its lifetime and the caller's `max-age`."""
    if control.max_age is not None and match.age_seconds > control.max_age:
        return CandidateOutcome.TOO_OLD
    if match.is_fresh:
        return CandidateOutcome.FRESH
    return CandidateOutcome.STALE if match.stale_seconds < stale_seconds else CandidateOutcome.EXPIRED


class SimilarQuestions:
    """The questions that this worker last answered by meaning, and the searches that found the answers.

    Such a question has no exact entry, so it is searched for without waiting for the exact tier. A question that
    was generated has an entry by now, and would waste the search.
    """

    def __init__(self, max_entries: int = 1024) -> None:
        self._max_entries = max_entries
        self._searches: OrderedDict[tuple[str, str], NearestSearch] = OrderedDict()

    def find(self, key: CacheKey) -> NearestSearch | None:
        """Returns the search of a question, if it was last answered by meaning."""
        return self._searches.get((key.scope, key.digest))

    def add(self, key: CacheKey, search: NearestSearch) -> None:
        """Remembers a question. Forgets the least recently answered one if there are too many."""
        self._searches[key.scope, key.digest] = search
        self._searches.move_to_end((key.scope, key.digest))
        if len(self._searches) > self._max_entries:
            self._searches.popitem(last=False)

    def forget(self, key: CacheKey) -> None:
        """Forgets a question, if it is known."""
        self._searches.pop((key.scope, key.digest), None)
