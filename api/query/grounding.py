"""Retrieves the passages for an answer, and builds the model's request from the question and the passages.

If the search is not possible, the model answers without passages.

The grounded check (`SEMANTIC_CACHE_GROUNDED_CHECK`) decides whether a cached answer's passages also answer a similar
question. Guards compare two questions. This check compares what the knowledge base has for them: the search for the
asked question must find the passages that the answer cites, with scores that are not much lower, and no better passage
that the answer does not cite. A search costs a few milliseconds, a generation seconds. If the check rejects the answer,
the generation uses the passages that it found.

`scripts/bench_grounded.py` measures it and the limits below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.guards.agreement import Disagreement
from api.knowledge.retrieval import PassageQuery, Retriever
from api.ports.answer_cache import RetrievalSnapshot
from api.ports.document_store import Corpus
from api.ports.question import RAW, Query, Timings
from api.ports.telemetry import GroundedCheckOutcome, GroundingOutcome, Telemetry
from api.ports.tracing import Step
from api.query import prompt
from api.query.candidates import USABLE, Candidate, CandidateOutcome, best, up_to_the_first_fresh
from api.query.citations import cited
from api.query.prompt import PromptTemplate, budget, fit
from api.values import CachedAnswer, GenerationRequest, QueuePlace, Source, Vector

if TYPE_CHECKING:
    from api.query.cache import CacheBudget, Lookup
    from api.query.condense import Condenser


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The result of the search for passages. `grounds` is None if there was no search.

    `keeps`: the answer may be shared. It may not if the search failed or was incomplete.
    """

    outcome: GroundingOutcome
    sources: tuple[Source, ...] = ()
    grounds: RetrievalSnapshot | None = None
    keeps: bool = True

    def is_like(self, other: Retrieval) -> bool:
        """Returns whether both have the same passages, of the same revisions."""
        return self.outcome == other.outcome and _passages(self) == _passages(other)


def _passages(grounding: Retrieval) -> list[tuple[str, int, int]]:
    return [(source.document_id, source.revision, source.chunk) for source in grounding.sources]


UNAVAILABLE = Retrieval("unavailable", keeps=False)


class PassageRetriever:
    """One worker's search for passages. `condenser` rewrites a follow-up question for the search."""

    def __init__(self, retriever: Retriever, condenser: Condenser, events: Telemetry, step: Step = nullcontext) -> None:
        self._retriever = retriever
        self._condenser = condenser
        self._events = events
        self._step = step

    async def ground(
        self,
        query: Query,
        vector: Vector | None,
        at_ms: int,
        timings: Timings,
        *,
        corpus: Corpus | None = None,
        background: bool = False,
    ) -> Retrieval:
        """Returns the passages for a question. Raises no errors of Redis.

        `vector`: the question's embedding, if known. `at_ms`: a recent time by the cache's clock. `corpus`: the
        tenant's documents then or later, if known. `background`: a follow-up is rewritten behind all users.
        """
        if corpus is None and not query.wants_passages:
            return Retrieval("not_asked")
        with self._step("retrieval"):
            try:
                grounding = await self._looked_for(query, vector, at_ms, timings, corpus, background=background)
            except StoreUnavailable as error:
                self._events.store_failed(error)
                grounding = UNAVAILABLE
            except EmbeddingUnavailable:
                grounding = UNAVAILABLE
            self._events.grounded(grounding.outcome, len(grounding.sources))
        return grounding

    async def ground_again(
        self, query: Query, vector: Vector | None, before: Retrieval, at_ms: int, timings: Timings
    ) -> Retrieval:
        """Repeats the search later, but only if documents have changed in between."""
        if before.grounds is not None:
            with suppress(StoreUnavailable), timings.timed("retrieve"):
                if await self._retriever.corpus(query.tenant) == before.grounds.corpus:
                    return replace(before, grounds=replace(before.grounds, at_ms=at_ms))
        return await self.ground(query, vector, at_ms, timings)

    async def _looked_for(
        self,
        query: Query,
        vector: Vector | None,
        at_ms: int,
        timings: Timings,
        corpus: Corpus | None,
        *,
        background: bool,
    ) -> Retrieval:
        if corpus is None:
            with timings.timed("retrieve"):
                corpus = await self._retriever.corpus(query.tenant)
        grounds = RetrievalSnapshot(query.top_k, query.documents, corpus, at_ms)
        if corpus.documents == 0:
            return Retrieval("no_documents", grounds=grounds)
        asked = await self._condenser.to_look_for(query, background=background)
        own = vector if asked.question == query.question and not query.history else None
        wanted = PassageQuery(
            asked.question, query.tenant, query.top_k, query.documents, own, languages=corpus.languages
        )
        with timings.timed("retrieve"):
            found = await self._retriever.retrieve(wanted)
        outcome: GroundingOutcome = "grounded" if found.sources else "nothing_relevant"
        return Retrieval(outcome, found.sources, grounds, keeps=found.complete)


class PromptBuilder:
    """Builds one worker's requests. `num_ctx`: the context length in tokens; None: Ollama's default."""

    def __init__(
        self, template: PromptTemplate, num_ctx: int | None, when_nothing_is_relevant: Literal["say_so", "answer"]
    ) -> None:
        self._prompts = prompt.Prompts(template)
        self._num_ctx = num_ctx
        self._when_nothing_is_relevant = when_nothing_is_relevant

    def nothing_relevant(self, query: Query) -> str:
        """Returns the answer if there are documents and none is relevant."""
        return self._worded_for(query).nothing_relevant

    def says_so(self, grounding: Retrieval) -> bool:
        """Returns whether `nothing_relevant` is the answer."""
        return grounding.outcome == "nothing_relevant" and self._when_nothing_is_relevant == "say_so"

    def request(
        self, query: Query, sources: tuple[Source, ...], *, buffered: bool, place: QueuePlace
    ) -> tuple[GenerationRequest, tuple[Source, ...]]:
        """Returns the request and the passages that fit into it."""
        history, prompts = query.history, self._prompts if query.variant is None else self._worded_for(query)
        if sources:
            tokens = budget(self._num_ctx, query.options.get("num_predict"))
            sources, history = fit(prompts, query.question, history, sources, tokens)
            messages = prompts.grounded(query.question, history, sources)
        elif query.template == RAW:
            messages = prompt.raw(query.question, history, query.system)
        else:
            messages = prompts.plain(query.question, history)
        request = GenerationRequest(
            query.model,
            messages,
            query.options,
            tenant=query.tenant,
            place=place,
            buffered=buffered,
            forwarded=query.forwarded,
        )
        return request, sources

    def _worded_for(self, query: Query) -> prompt.Prompts:
        """Returns the prompts of the query's variant, or the worker's own."""
        variant = query.variant
        return self._prompts if variant is None or variant.prompt is None else prompt.prompts_of(variant.prompt)


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
        search = self._retriever.ground(query, lookup.vector, lookup.now_ms, Timings(), corpus=lookup.corpus)
        try:
            return await self._budget.within(timings, search)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
            return UNAVAILABLE
