"""Puts the answer to one question into the cache, as if a user had asked it, but behind all users and uncounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from api.model import CacheMatch, Generation, GenerationRequest, Vector
from api.ports.answers import AnswerCache, NewAnswer
from api.ports.models import Embedder, ModelDigests
from api.ports.warm_ups import WarmUpCount
from api.query import prompt
from api.query.completeness import is_complete
from api.query.failover import Failover
from api.query.fingerprint import Fingerprint, fingerprint
from api.query.question import Query
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
    """Generations take part in no count of what users ask."""

    def __init__(
        self, cache: AnswerCache, embedder: Embedder, digests: ModelDigests, backends: Failover, events: WarmUpEvents
    ) -> None:
        self._cache = cache
        self._digests = digests
        self._embedder = embedder
        self._backends = backends
        self._events = events

    async def warm(self, wanted: WarmQuestion) -> Warmed:
        """Skips what is cached and fresh. Raises what the flow does, and `StoreUnavailable`, `EmbeddingUnavailable`."""
        query = wanted.query()
        place = fingerprint(query, await self._embedder.identity(), self._digests.digest(query.model))
        found = await self._cache.find_exact(place.scope, place.digest)
        if _is_there(wanted, found.match):
            return SKIPPED
        vector = (await self._embedder.embed([query.question]))[0] if query.has_meaning else None
        if wanted.answer is not None:
            answer = NewAnswer(query.question, wanted.answer, query.model, query.tenant, asked_ms=found.now_ms)
            return await self._stored(place, vector, answer, ())
        generation = await self._generation(query)
        if not is_complete(generation, query.options):
            return Warmed(("failed",), "the answer is empty, or was cut off")
        text, end = generation.text, generation.end
        answer = NewAnswer(query.question, text, end.model, query.tenant, usage=end.usage, asked_ms=found.now_ms)
        return await self._stored(place, vector, answer, ("generated",))

    async def _stored(
        self, place: Fingerprint, vector: Vector | None, answer: NewAnswer, counts: tuple[WarmUpCount, ...]
    ) -> Warmed:
        if await self._cache.store(place.scope, place.digest, vector, answer) is None:
            return Warmed((*counts, "skipped"))  # invalidated meanwhile
        self._events.stored_ahead()
        return Warmed((*counts, "stored"))

    async def _generation(self, query: Query) -> Generation:
        messages = prompt.build(query.question, query.history, query.template, query.system)
        request = GenerationRequest(
            query.model, messages, query.options, tenant=query.tenant, background=True, whole=True
        )
        async with self._backends.generate(request) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event
        raise AssertionError("a generation ends with its answer or an error")


def _is_there(wanted: WarmQuestion, match: CacheMatch | None) -> bool:
    """Whether it is cached and fresh; an answer that is given replaces another."""
    return (
        match is not None and match.ttl_seconds >= 0 and (wanted.answer is None or wanted.answer == match.answer.answer)
    )
