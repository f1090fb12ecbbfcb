"""THE FLOW: how one question is answered, its steps in order.

1. the exact tier: the same question, one round trip
2. the embedding
3. the semantic tier: a question that means the same, one round trip
4. the language model, through the bulkhead and the circuit breaker
5. the answer is stored for the whole fleet

A lost Redis or a hanging embedder costs the cache, not the answer. A failing Ollama costs the answer only when the
cache keeps none, not even an expired one.
"""

from __future__ import annotations

from api.errors import BreakerOpen, BulkheadFull, OnlyIfCached, RagherdError, UpstreamError
from api.model import CacheMatch, CacheStatus, Generation, GenerationRequest
from api.ports import Breaker, Bulkhead, LanguageModel
from api.query import guarded_call, prompt
from api.query.answered import Answered, QueryObserver, Stages
from api.query.question import Query
from api.query.shared_answers import Lookup, SharedAnswers


class QueryService:
    """Answers questions for one worker."""

    def __init__(
        self,
        model: LanguageModel,
        bulkhead: Bulkhead,
        breaker: Breaker,
        shared: SharedAnswers,
        observer: QueryObserver,
    ) -> None:
        self._model = model
        self._bulkhead = bulkhead
        self._breaker = breaker
        self._shared = shared
        self._observer = observer

    async def answer(self, query: Query) -> Answered:
        """Raises `OnlyIfCached`, `BulkheadFull`, `BreakerOpen` and `UpstreamError`; all else degrades."""
        stages = Stages()
        try:
            with stages.timed("total"):
                answered = await self._answer(query, stages)
        except RagherdError as error:
            self._observer.refused(query, error)
            raise
        self._observer.answered(query, answered)
        return answered

    async def _answer(self, query: Query, stages: Stages) -> Answered:
        lookup = await self._shared.look_up(query, stages)
        if lookup.match is not None:
            return self._cached(lookup.match, CacheStatus.HIT, stages)
        if query.cache_control.only_if_cached:
            self._missed(lookup, query)
            raise OnlyIfCached("The question has no cached answer, and the request allows no other.")
        try:
            with stages.timed("generate"):
                generation = await self._generate(query)
        except (BulkheadFull, BreakerOpen, UpstreamError) as error:
            stale = await self._shared.stale(query, lookup, stages) if _may_serve_stale(error) else None
            if stale is None:
                self._missed(lookup, query)
                raise
            return self._cached(stale, CacheStatus.STALE, stages)
        return await self._fresh(query, lookup, generation, stages)

    def _missed(self, lookup: Lookup, query: Query) -> bool:
        """Whether the cache was asked in vain; counted if so."""
        missed = lookup.place is not None and query.cache_control.reads
        if missed:
            self._observer.missed()
        return missed

    def _cached(self, match: CacheMatch, status: CacheStatus, stages: Stages) -> Answered:
        self._shared.used(match)
        found = match.answer
        return Answered(found.answer, found.model, status, stages, found.sources, match, entry=found.entry)

    async def _generate(self, query: Query) -> Generation:
        request = GenerationRequest(query.model, prompt.build(query.question, query.history), query.options)
        try:
            return await guarded_call.generate(self._model, self._bulkhead, self._breaker, request, query.tenant)
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise

    async def _fresh(self, query: Query, lookup: Lookup, generation: Generation, stages: Stages) -> Answered:
        entry = await self._shared.store(query, lookup, generation, stages)
        return Answered(
            generation.text,
            generation.end.model,
            CacheStatus.MISS if self._missed(lookup, query) else CacheStatus.BYPASS,
            stages,
            usage=generation.end.usage,
            generation=generation,
            entry=entry,
            stored=entry is not None,
        )


def _may_serve_stale(error: RagherdError) -> bool:
    """Where Ollama is at fault, or busy; not where the request itself is (a model that does not exist)."""
    return error.status >= 500
