"""Checks that a cached answer's passages also answer a similar question (`SEMANTIC_CACHE_GROUNDED_CHECK`).

Guards compare two questions. This check compares what the knowledge base has for them: the search for the asked
question must find the passages that the answer cites, with scores that are not much lower, and no better passage that
the answer does not cite. A search costs a few milliseconds, a generation seconds. If the check rejects the answer, the
generation uses the passages that it found.

`scripts/bench_grounded.py` measures it and the limits below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from api.errors import StoreUnavailable
from api.guards.agreement import Disagreement
from api.ports.question import Query, Timings
from api.ports.telemetry import GroundedCheckOutcome, Telemetry
from api.query.candidates import USABLE, Candidate, CandidateOutcome, best, up_to_the_first_fresh
from api.query.citations import cited
from api.query.grounding import UNAVAILABLE, PassageRetriever, Retrieval
from api.values import CachedAnswer, Source

if TYPE_CHECKING:
    from api.query.cache import CacheBudget, Lookup

GUARD: Final = "grounding"
"""The check's name among the guards."""
FALL: Final = 0.15
"""A cited passage's score may be this much lower for the asked question."""
MARGIN: Final = 0.03
"""A passage is better if its score is this much higher than the best cited one's."""

Position = tuple[str, int, int]


def objection(found: Sequence[Source], stored: CachedAnswer) -> str:
    """Returns why the passages found for a question do not support a cached answer, or an empty string. Pure.

    If the answer cites nothing, the best passage found must be one that the model had read.
    """
    now = {_position(source): source.score for source in found}
    before = {_position(source): source.score for source in stored.sources}
    used = [_position(stored.sources[number - 1]) for number in sorted(cited(stored.answer, len(stored.sources)))]
    if not used:
        return _not_read(now, before)
    for place in used:
        if place not in now:
            return f"not found: {_named(place)}"
        if now[place] < before[place] - FALL:
            return f"lower score: {_named(place)}, {before[place]:.2f} / {now[place]:.2f}"
    here, there = (max(scores[place] for place in used) for scores in (now, before))
    for place, score in now.items():
        if place not in used and score > here + MARGIN and before.get(place, there) <= there:
            return f"better: {_named(place)}, {score:.2f} / {here:.2f}"
    return ""


def _not_read(now: dict[Position, float], before: dict[Position, float]) -> str:
    first = max(now, key=now.__getitem__, default=None)
    if first is None:
        return "nothing found"
    return "" if first in before else f"better: {_named(first)}"


def _position(source: Source) -> Position:
    return source.document_id, source.revision, source.chunk


def _named(place: Position) -> str:
    return f"{place[0]} #{place[2]}"


class GroundedCheck:
    """One worker's check, within the cache's time budget. If the search fails, no grounded answer is served."""

    def __init__(self, retriever: PassageRetriever, budget: CacheBudget, observer: Telemetry) -> None:
        self._retriever = retriever
        self._budget = budget
        self._observer = observer

    async def best(
        self,
        considered: list[Candidate],
        more: Iterator[Candidate],
        query: Query,
        lookup: Lookup,
        timings: Timings,
    ) -> Candidate | None:
        """Returns the best candidate that passes. Marks the others as rejected, and takes further ones from `more`."""
        chosen = best(considered)
        while chosen is not None and chosen.match.answer.sources:
            checked = await self.checked(chosen, query, lookup, timings)
            if checked is chosen:
                break
            considered[considered.index(chosen)] = checked
            considered += up_to_the_first_fresh(more)
            chosen = best(considered)
        return chosen

    async def all(
        self, candidates: Iterable[Candidate], query: Query, lookup: Lookup, timings: Timings
    ) -> list[Candidate]:
        """Checks every candidate that may be served."""
        return [await self.checked(one, query, lookup, timings) for one in candidates]

    async def checked(self, candidate: Candidate, query: Query, lookup: Lookup, timings: Timings) -> Candidate:
        """Returns the candidate, or its rejection. Searches at most once for a question."""
        stored = candidate.match.answer
        if candidate.fate not in USABLE or not stored.sources:
            return candidate
        detail, outcome = await self._objection(stored, query, lookup, timings)
        self._observer.grounded_checked(outcome)
        if not detail:
            return candidate
        return replace(candidate, fate=CandidateOutcome.REJECTED, objection=Disagreement(GUARD, detail))

    async def _objection(
        self, stored: CachedAnswer, query: Query, lookup: Lookup, timings: Timings
    ) -> tuple[str, GroundedCheckOutcome]:
        if query.history:
            return "a follow-up needs its own search", "unavailable"
        if lookup.retrieval is None:
            lookup.retrieval = await self._search(query, lookup, timings)
        if not lookup.retrieval.keeps:
            return "the search failed or was incomplete", "unavailable"
        detail = objection(lookup.retrieval.sources, stored)
        return detail, "rejected" if detail else "agreed"

    async def _search(self, query: Query, lookup: Lookup, timings: Timings) -> Retrieval:
        """The time counts as the cache's: these are not the passages of a generation yet."""
        search = self._retriever.ground(query, lookup.vector, lookup.now_ms, Timings())
        try:
            return await self._budget.within(timings, search)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
            return UNAVAILABLE
