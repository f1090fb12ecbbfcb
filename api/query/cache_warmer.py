"""Puts the answer to one question into the cache, as if a user had asked it, but behind all users and uncounted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from api.model import CacheMatch, Embedding, Landed
from api.ports.answers import AnswerCache, NewAnswer
from api.ports.models import Embedder
from api.ports.warm_ups import WarmUpCount
from api.query.answered import Stages
from api.query.completeness import is_complete
from api.query.fingerprint import Fingerprint
from api.query.fresh_answer import FreshAnswers
from api.query.places import Places
from api.query.question import Query
from api.query.shared_answers import Lookup
from api.query.warm_question import WarmQuestion


@dataclass(frozen=True, slots=True)
class Warmed:
    """What came of a question, as it counts. `error` says why it failed."""

    counts: tuple[WarmUpCount, ...]
    error: str = ""


SKIPPED = Warmed(("skipped",))


class WarmUpEvents(Protocol):
    """Who is told of warm-ups."""

    def stored_ahead(self) -> None: ...

    def warm_up_taken(self, job: str) -> None: ...

    def warm_up_failed(self, job: str, error: str) -> None: ...


class CacheWarmer:
    """Generations take part in no count of what users ask. `fresh` is told of none of them."""

    def __init__(
        self, cache: AnswerCache, embedder: Embedder, places: Places, fresh: FreshAnswers, events: WarmUpEvents
    ) -> None:
        self._cache = cache
        self._places = places
        self._embedder = embedder
        self._fresh = fresh
        self._events = events

    async def warm(self, wanted: WarmQuestion) -> Warmed:
        """Skips what is cached and fresh. Raises what the flow does, and `StoreUnavailable`, `EmbeddingUnavailable`."""
        query = wanted.query()
        place = await self._places.of(query)
        found = await self._cache.find_exact(place.scope, place.digest)
        if _is_there(wanted, found.match):
            return SKIPPED
        embedding = await self._embedding(query)
        if wanted.answer is not None:
            answer = NewAnswer(query.question, wanted.answer, query.model, query.tenant, asked_ms=found.now_ms)
            return await self._stored(place, embedding, answer)
        lookup = Lookup(place, available=True, now_ms=found.now_ms)
        if embedding is not None:
            lookup.vector, lookup.unread = embedding.vector, embedding.unread
        return await self._generated(query, lookup)

    async def _embedding(self, query: Query) -> Embedding | None:
        if not query.has_meaning:
            return None
        (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
        return embedding

    async def _stored(self, place: Fingerprint, embedding: Embedding | None, answer: NewAnswer) -> Warmed:
        vector = None
        if embedding is not None:
            vector, answer = embedding.vector, replace(answer, unread=embedding.unread)
        if await self._cache.store(place.scope, place.digest, vector, answer) is None:
            return Warmed(("skipped",))  # invalidated meanwhile
        self._events.stored_ahead()
        return Warmed(("stored",))

    async def _generated(self, query: Query, lookup: Lookup) -> Warmed:
        landed = None
        async with self._fresh.generate(query, lookup, Stages(), whole=True, background=True) as events:
            async for event in events:
                landed = event if isinstance(event, Landed) else landed
        assert landed is not None, "a generation ends with its answer or an error"
        if landed.entry is not None:
            self._events.stored_ahead()
            return Warmed(("generated", "stored"))
        if landed.generation is None or not is_complete(landed.generation, query.options):
            return Warmed(("failed",), "the answer is empty, or was cut off")
        return Warmed(("generated", "skipped"))  # invalidated meanwhile, or its documents changed


def _is_there(wanted: WarmQuestion, match: CacheMatch | None) -> bool:
    """Whether it is cached and fresh; an answer that is given replaces another."""
    return (
        match is not None and match.ttl_seconds >= 0 and (wanted.answer is None or wanted.answer == match.answer.answer)
    )
