"""The cache's part in the flow: look up, fall back to an expired answer, store. It may fail; the answer goes on."""

from __future__ import annotations

from dataclasses import dataclass

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.model import CacheMatch, Generation, Vector
from api.ports import AnswerCache, Embedder, NewAnswer
from api.query.answered import QueryObserver, Stages
from api.query.cache_budget import CacheBudget
from api.query.cache_control import CacheControl
from api.query.fingerprint import Fingerprint, fingerprint
from api.query.question import Query


@dataclass(slots=True)
class Lookup:
    """What the cache said. `place` is None when it takes no part in this answer."""

    place: Fingerprint | None = None
    now_ms: int = 0
    vector: Vector | None = None
    match: CacheMatch | None = None
    stale: CacheMatch | None = None


class SharedAnswers:
    """The fleet's answers as one worker uses them. `cache` is None where the semantic cache is switched off."""

    def __init__(
        self,
        cache: AnswerCache | None,
        embedder: Embedder,
        observer: QueryObserver,
        similarity_threshold: float,
        budget: float,
    ) -> None:
        """`budget`: the seconds that the cache may keep one question waiting."""
        self._cache = cache
        self._embedder = embedder
        self._observer = observer
        self._threshold = similarity_threshold
        self._budget = CacheBudget(budget)

    async def look_up(self, query: Query, stages: Stages) -> Lookup:
        """The exact tier, the embedding, the semantic tier: until one of them has the answer."""
        lookup = Lookup()
        if self._cache is None or query.cache_control.no_store:
            return lookup
        try:
            lookup.place = fingerprint(query, await self._embedder.identity())
            if query.cache_control.reads:
                await self._exact(self._cache, query, lookup.place, lookup, stages)
            if lookup.match is None:
                lookup.vector = await self._embed(query, stages)
            if lookup.match is None and query.cache_control.reads:
                await self._semantic(query, lookup, stages)
        except EmbeddingUnavailable as error:
            self._observer.embedding_failed(error)
        except StoreUnavailable as error:
            lookup.place = None
            self._observer.store_failed(error)
        return lookup

    async def _exact(
        self, cache: AnswerCache, query: Query, place: Fingerprint, lookup: Lookup, stages: Stages
    ) -> None:
        found = await self._budget.within(stages, cache.find_exact(place.scope, place.digest))
        lookup.now_ms = found.now_ms
        if found.match is not None and found.match.ttl_seconds < 0:
            lookup.stale = found.match
        else:
            lookup.match = _allowed(found.match, query.cache_control)

    async def _embed(self, query: Query, stages: Stages) -> Vector | None:
        """Whether the question has a vector is its own to say: with history what it means depends on that."""
        if not query.has_meaning:
            return None
        try:
            with stages.timed("embed"):
                return (await self._embedder.embed([query.question]))[0]
        except EmbeddingUnavailable as error:
            self._observer.embedding_failed(error)
            return None

    async def _semantic(self, query: Query, lookup: Lookup, stages: Stages) -> None:
        match = await self._similar(lookup, stages, stale=False)
        if match is not None and match.similarity < self._threshold:
            self._observer.below_threshold(match.similarity)
            match = None
        lookup.match = _allowed(match, query.cache_control)

    async def _similar(self, lookup: Lookup, stages: Stages, *, stale: bool) -> CacheMatch | None:
        if self._cache is None or lookup.place is None or lookup.vector is None:
            return None
        place = lookup.place
        asked = self._cache.find_similar(place.embedder, place.scope, lookup.vector, lookup.now_ms, stale=stale)
        return await self._budget.within(stages, asked)

    async def stale(self, query: Query, lookup: Lookup, stages: Stages) -> CacheMatch | None:
        """An expired answer, where Ollama can give none: the same question's, else a similar one's."""
        if not query.cache_control.reads:
            return None
        match = lookup.stale or await self._similar_stale(lookup, stages)
        return _allowed(match, query.cache_control)

    async def _similar_stale(self, lookup: Lookup, stages: Stages) -> CacheMatch | None:
        try:
            match = await self._similar(lookup, stages, stale=True)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
            return None
        return match if match is not None and match.similarity >= self._threshold else None

    def used(self, match: CacheMatch) -> None:
        """Notes that an entry was served; no I/O."""
        if self._cache is not None:
            self._cache.used(match)

    async def store(self, query: Query, lookup: Lookup, generation: Generation, stages: Stages) -> str | None:
        """Stores a complete answer and gives its entry; None where it is not stored."""
        if self._cache is None or lookup.place is None or not _is_complete(query, generation):
            return None
        answer = NewAnswer(
            query.question, generation.text, generation.end.model, query.tenant, usage=generation.end.usage
        )
        try:
            storing = self._cache.store(lookup.place.scope, lookup.place.digest, lookup.vector, answer)
            stored = await self._budget.within(stages, storing)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
            return None
        return stored.entry


def _allowed(match: CacheMatch | None, control: CacheControl) -> CacheMatch | None:
    """A match that is not older than the caller accepts."""
    too_old = match is not None and control.max_age is not None and match.age_seconds > control.max_age
    return None if too_old else match


def _is_complete(query: Query, generation: Generation) -> bool:
    """Not empty, and ended by the model itself, or by the length that the caller asked for."""
    reason = generation.end.done_reason
    ended = reason == "stop" or (reason == "length" and "num_predict" in query.options)
    return ended and bool(generation.text.strip())
