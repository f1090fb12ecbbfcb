"""THE FLOW: how one question is answered, its steps in order.

1. the exact tier: the same question, one round trip
2. the embedding
3. the semantic tier: a question that means the same, one round trip
4. the language model, through the bulkhead and the circuit breaker
5. the answer is stored for the whole fleet

It is one flow for both forms of an answer: `stream` gives it as it comes, `answer` collects it. A lost Redis or a
hanging embedder costs the cache, not the answer. A failing Ollama costs the answer only when the cache keeps none, not
even an expired one. A caller who leaves ends the flow where it is, and the generation with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing

from api.errors import BreakerOpen, BulkheadFull, OnlyIfCached, RagherdError, UpstreamError
from api.model import CacheMatch, CacheStatus, Generation, GenerationRequest, Token
from api.query import prompt
from api.query.answered import Answered, AnswerEvent, Opening, QueryObserver, Stages
from api.query.deadline import Deadline
from api.query.failover import Failover
from api.query.question import Query
from api.query.shared_answers import Lookup, SharedAnswers


class QueryService:
    """Answers questions for one worker."""

    def __init__(self, backends: Failover, shared: SharedAnswers, observer: QueryObserver) -> None:
        self._backends = backends
        self._shared = shared
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
            lookup = await self._shared.look_up(query, stages)
        if lookup.match is not None:
            for event in self._cached(lookup.match, CacheStatus.HIT, stages):
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
            stale = await self._shared.stale(query, lookup, stages) if may_be_stale else None
            if stale is None:
                self._missed(lookup, query)
                raise
        for event in self._cached(stale, CacheStatus.STALE, stages):
            yield event

    def _missed(self, lookup: Lookup, query: Query) -> None:
        """Counts a cache that was asked in vain."""
        if _status(lookup, query) is CacheStatus.MISS:
            self._observer.missed()

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
        """By the language model. Only the waiting for it counts as its time: a slow reader's is the reader's own."""
        messages = prompt.build(query.question, query.history, query.template, query.system)
        request = GenerationRequest(query.model, messages, query.options, tenant=query.tenant, whole=whole)
        status = _status(lookup, query)
        opened = False
        async with self._backends.generate(request) as generating:
            while True:
                event = await self._next(generating, stages, deadline)
                if not opened:
                    opened = True
                    yield Opening(status)
                if isinstance(event, Generation):
                    break
                yield event
        entry = await self._shared.store(query, lookup, event, stages)
        self._missed(lookup, query)
        yield Answered(
            event.text,
            event.end.model,
            status,
            stages,
            usage=event.end.usage,
            generation=event,
            entry=entry,
            stored=entry is not None,
        )

    async def _next(
        self, generating: AsyncIterator[Token | Generation], stages: Stages, deadline: Deadline
    ) -> Token | Generation:
        try:
            async with deadline.watched():
                with stages.timed("generate"):
                    return await anext(generating)
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise


def _status(lookup: Lookup, query: Query) -> CacheStatus:
    """What a fresh answer says of the cache: whether it was asked in vain."""
    asked = lookup.place is not None and query.cache_control.reads
    return CacheStatus.MISS if asked else CacheStatus.BYPASS


def _may_serve_stale(error: RagherdError) -> bool:
    """Where Ollama is at fault, or busy; not where the request itself is: its model, or its own deadline."""
    return isinstance(error, BreakerOpen | BulkheadFull | UpstreamError) and error.status >= 500
