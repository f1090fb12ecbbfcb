"""THE FLOW: how one question is answered, its steps in order.

0. where a setting says so, a question with history is rewritten to stand alone
1. the exact tier: the same question, one round trip
2. the embedding
3. the semantic tier: a question that means the same, one round trip, and the guards that may object
4. single flight: where the same question is being answered anywhere, its answer is shared
5. the passages of the knowledge base that the answer is grounded in
6. the language model, through the bulkhead and the circuit breaker
7. the answer is stored for the whole fleet

It is one flow for both forms of an answer: `stream` gives it as it comes, `answer` collects it. A lost Redis or a
hanging embedder costs the cache, not the answer. A failing Ollama costs the answer only when the cache keeps none, not
even an expired one. A caller who leaves ends the flow where it is, and the generation that nobody else waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from api.errors import BreakerOpen, BulkheadFull, OnlyIfCached, RagherdError, UpstreamError
from api.ports.coordination import Seat
from api.query.answered import Answered, AnswerEvent, Opening, QueryObserver, Stages
from api.query.cache import Lookup, SharedAnswers
from api.query.condense import Condenser
from api.query.generate import Refresher, SingleFlight
from api.query.question import Deadline, Query
from api.values import CacheMatch, CacheStatus, Grounded, Landed, Source, StoredElsewhere, Token


class QueryService:
    """Answers questions for one worker."""

    def __init__(
        self,
        condenser: Condenser | None,
        shared: SharedAnswers,
        flights: SingleFlight,
        refresher: Refresher,
        observer: QueryObserver,
    ) -> None:
        """`condenser` is None where questions with history are answered with it."""
        self._condenser = condenser
        self._shared = shared
        self._flights = flights
        self._refresher = refresher
        self._observer = observer

    async def answer(self, query: Query) -> Answered:
        """Raises `OnlyIfCached`, `BulkheadFull`, `BreakerOpen`, `UpstreamError`, `DeadlinePassed`; else degrades."""
        async with aclosing(self._observed(query, whole=True)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    return event
        raise AssertionError("the flow ends with an answer or an error")

    def stream(self, query: Query) -> AbstractAsyncContextManager[AsyncIterator[AnswerEvent]]:
        """One `Opening`, the `Token`s, and `Answered`, once stored. Raises what `answer` does, between tokens too.

        Nothing happens before the first of them is asked for. Leaving the context early ends the generation.
        """
        return aclosing(self._observed(query, whole=False))

    async def _observed(self, query: Query, *, whole: bool) -> AsyncGenerator[AnswerEvent, None]:
        """The flow, its end counted once: answered, refused, or left by its caller."""
        stages = Stages()
        try:
            async with aclosing(self._events(query, stages, whole=whole)) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        answered = event
                        break
                    yield event
        except RagherdError as error:
            self._observer.refused(query, error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._observer.left(query)
            raise
        stages.end()
        self._observer.answered(query, answered)
        yield answered

    async def _events(self, query: Query, stages: Stages, *, whole: bool) -> AsyncGenerator[AnswerEvent, None]:
        """`whole`: the caller sees no token before the last, so that what was given may still be taken back."""
        deadline = Deadline(query.timeout)
        async with deadline.watched():
            if self._condenser is not None:
                query = await self._condenser.standalone(query, stages)
            lookup = await self._shared.look_up(query, stages)
        if lookup.match is not None:
            for event in self._found(query, lookup, lookup.match, stages):
                yield event
            return
        if query.cache_control.only_if_cached:
            self._missed(lookup, query)
            raise OnlyIfCached("The question has no cached answer, and the request allows no other.")
        begun = False
        try:
            async with aclosing(self._fresh(query, lookup, stages, deadline, whole=whole)) as events:
                async for event in events:
                    begun = True
                    yield event
            return
        except RagherdError as error:
            may_be_stale = _may_serve_stale(error) and (whole or not begun)
            expired = await self._shared.expired(query, lookup, stages) if may_be_stale else None
            if expired is None:
                self._missed(lookup, query)
                raise
        for event in self._cached(expired, CacheStatus.STALE, stages):
            yield event

    def _missed(self, lookup: Lookup, query: Query) -> None:
        """Counts a cache that was asked in vain."""
        if _status(lookup, query) is CacheStatus.MISS:
            self._observer.missed()

    def _found(self, query: Query, lookup: Lookup, match: CacheMatch, stages: Stages) -> tuple[AnswerEvent, ...]:
        """By the cache; where its answer has expired, it is served once more and refreshed meanwhile."""
        if lookup.stale:
            self._refresher.start(query, lookup)
        return self._cached(match, CacheStatus.STALE if lookup.stale else CacheStatus.HIT, stages)

    def _cached(self, match: CacheMatch, status: CacheStatus, stages: Stages) -> tuple[AnswerEvent, ...]:
        self._shared.used(match)
        found = match.answer
        return (
            Opening(status, found.sources, match),
            Token(found.answer),
            Answered(found.answer, found.model, status, stages, found.sources, match, entry=found.entry),
        )

    async def _fresh(
        self, query: Query, lookup: Lookup, stages: Stages, deadline: Deadline, *, whole: bool
    ) -> AsyncGenerator[AnswerEvent, None]:
        """By the language model, because of this caller or of one before. Only the waiting counts as its time."""
        while lookup.match is None:
            async with self._flights.answer(query, lookup, stages, whole=whole) as shared:
                sources: tuple[Source, ...] = ()
                event = await self._next(shared, stages, deadline)
                while isinstance(event, Grounded):  # not told yet: as long as there is no word, there may be an error
                    sources = event.sources
                    event = await self._next(shared, stages, deadline)
                if not isinstance(event, StoredElsewhere):
                    status = _status(lookup, query, coalesced=not shared.led)
                    yield Opening(status, event.sources if isinstance(event, Landed) else sources)
                    while isinstance(event, Token):
                        yield event
                        event = await self._next(shared, stages, deadline)
                    assert isinstance(event, Landed), "what has begun does not turn out to be stored elsewhere"
                    if status is CacheStatus.MISS:
                        self._observer.missed()
                    yield _answered(event, status, stages)
                    return
            async with deadline.watched():
                await self._shared.look_again(query, lookup, stages)
        for found in self._found(query, lookup, lookup.match, stages):
            yield found

    async def _next(
        self, shared: Seat, stages: Stages, deadline: Deadline
    ) -> Grounded | Token | Landed | StoredElsewhere:
        async with deadline.watched():
            with stages.timed("generate"):
                return await anext(shared)


def _answered(landed: Landed, status: CacheStatus, stages: Stages) -> Answered:
    """Whoever shares another's answer has it for nothing."""
    answered = Answered(landed.text, landed.model, status, stages, landed.sources, entry=landed.entry)
    if status is CacheStatus.COALESCED:
        return replace(answered, landed=landed)
    return replace(answered, landed=landed, usage=landed.usage, stored=landed.entry is not None)


def _status(lookup: Lookup, query: Query, *, coalesced: bool = False) -> CacheStatus:
    """What a fresh answer says of the cache: whether it was asked in vain."""
    if coalesced:
        return CacheStatus.COALESCED
    return CacheStatus.MISS if lookup.available and query.cache_control.reads else CacheStatus.BYPASS


def _may_serve_stale(error: RagherdError) -> bool:
    """Where Ollama is at fault, or busy; not where the request itself is: its model, or its own deadline."""
    return isinstance(error, BreakerOpen | BulkheadFull | UpstreamError) and error.status >= 500
