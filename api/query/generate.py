"""A fresh answer: passages, the prompt, the language model by way of bulkhead and breaker, the cache at the end.

Whether an answer may be shared with others who ask the same, and the generation of it.

Refreshes expired answers in the background: each by one worker of the fleet, behind all users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from api.backends.generations import Generations
from api.cancellation import cancelled, let_go
from api.errors import DocumentsChanged, RagherdError, UpstreamError
from api.ports.cache import Claim
from api.ports.coordination import Flights, Seat
from api.query.answered import QueryObserver, RefreshOutcome, Stages
from api.query.cache import Lookup, SharedAnswers
from api.query.citations import Citations, clean
from api.query.grounding import Grounder, Grounding, Prompting
from api.query.question import Query
from api.values import (
    CachedAnswer,
    FlightKey,
    Generation,
    GenerationEnd,
    GenerationRequest,
    Grounded,
    Landed,
    Restart,
    Source,
    StoredElsewhere,
    Token,
    Usage,
)

LOOKS: Final = 3
"""How often an answer is checked against documents that change all the time."""

FreshEvent = Grounded | Token | Restart | Landed


class FreshAnswers:
    """Generates and stores, for whoever waits: the caller himself, a flight that others share, or nobody yet."""

    def __init__(
        self,
        backends: Generations,
        shared: SharedAnswers,
        grounder: Grounder,
        prompting: Prompting,
        observer: QueryObserver,
    ) -> None:
        self._backends = backends
        self._shared = shared
        self._grounder = grounder
        self._prompting = prompting
        self._observer = observer

    def generate(
        self,
        query: Query,
        lookup: Lookup,
        stages: Stages,
        claim: Claim | None = None,
        *,
        whole: bool,
        background: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[FreshEvent]]:
        """`Grounded`, `Token`s, a `Restart` where they are void, and `Landed` once stored: what `claim` is for.

        `stages` are those of the caller that causes it. `whole`: nobody reads along. `background` work waits behind all
        users. Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`, in mid-answer too.
        """
        return aclosing(self._events(query, lookup, stages, claim, whole=whole, background=background))

    async def _events(
        self, query: Query, lookup: Lookup, stages: Stages, claim: Claim | None, *, whole: bool, background: bool
    ) -> AsyncGenerator[FreshEvent, None]:
        if lookup.match is not None and lookup.vector is None:
            await self._shared.embed(query, lookup, stages)  # an expired answer, found to the letter, is refreshed
        grounding = await self._grounder.ground(query, lookup.vector, lookup.now_ms, stages)
        sources: tuple[Source, ...] = ()
        if self._prompting.says_so(grounding):
            generation = _said(self._prompting.nothing_relevant, query)
            yield Grounded(())
            yield Token(generation.text)
        else:
            request, sources = self._prompting.request(query, grounding.sources, whole=whole, background=background)
            async with aclosing(self._worded(request, sources)) as events:
                async for event in events:
                    if isinstance(event, Generation):
                        generation = event
                        break
                    yield event
        stored = await self._stored(query, lookup, grounding, sources, generation, stages, claim)
        self._observer.generated(generation.end.usage, stored=stored is not None)
        yield Landed(
            generation.text,
            generation.end.model,
            generation.end.usage,
            done_reason=generation.end.done_reason,
            sources=sources,
            entry=stored.entry if stored is not None else None,
            generation=generation,
        )

    async def _worded(
        self, request: GenerationRequest, sources: tuple[Source, ...]
    ) -> AsyncGenerator[Grounded | Token | Restart | Generation, None]:
        """By the language model, without citations of what is no source. Its end is the whole generation."""
        citations = Citations(len(sources))
        yield Grounded(sources)
        try:
            async with self._backends.generate(request) as generating:
                async for event in generating:
                    if isinstance(event, Generation):
                        generation = event
                        break
                    if isinstance(event, Restart):
                        citations = Citations(len(sources))
                        yield event
                        yield Grounded(sources)
                    elif text := citations.feed(event.text) if sources else event.text:
                        yield Token(text)
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise
        if not sources:
            yield generation
            return
        if rest := citations.end():
            yield Token(rest)
        self._observer.cited(len(citations.cited), citations.removed)
        yield replace(generation, text=clean(generation.text, len(sources)))

    async def _stored(
        self,
        query: Query,
        lookup: Lookup,
        grounding: Grounding,
        sources: tuple[Source, ...],
        generation: Generation,
        stages: Stages,
        claim: Claim | None,
    ) -> CachedAnswer | None:
        """Where documents changed meanwhile, it is stored only if the same passages would be found now."""
        if not grounding.keeps:
            return None
        for _ in range(LOOKS):
            try:
                return await self._shared.store(query, lookup, grounding.grounds, sources, generation, stages, claim)
            except DocumentsChanged as changed:
                now = await self._grounder.ground_again(query, lookup.vector, grounding, changed.now_ms, stages)
                if not (now.keeps and now.is_like(grounding)):
                    return None
                grounding = now
        return None


def _said(text: str, query: Query) -> Generation:
    """An answer that needs no language model."""
    return Generation(text, GenerationEnd(query.model, "stop", Usage()), 0.0)


class SingleFlight:
    """Fresh answers, each generated once for all who wait for it."""

    def __init__(self, flights: Flights, fresh: FreshAnswers) -> None:
        self._flights = flights
        self._fresh = fresh

    def answer(self, query: Query, lookup: Lookup, stages: Stages, *, whole: bool) -> AbstractAsyncContextManager[Seat]:
        """A seat in the flight of the question; in one of the caller's own where it wants no answer of others."""
        if lookup.place is None or not query.cache_control.reads:
            return self._alone(query, lookup, stages, whole=whole)
        lead = partial(self._fresh.generate, query, lookup, stages, whole=whole)
        key = FlightKey(lookup.place.scope, lookup.place.digest)
        return self._flights.join(
            key,
            lead,
            asked_ms=lookup.now_ms if lookup.available else 0,
            not_before_ms=lookup.invalidated_ms,
            whole=whole,
        )

    @asynccontextmanager
    async def _alone(self, query: Query, lookup: Lookup, stages: Stages, *, whole: bool) -> AsyncGenerator[Seat, None]:
        async with self._fresh.generate(query, lookup, stages, whole=whole) as events:
            yield _OwnSeat(events, whole=whole)


class _OwnSeat:
    """The caller is alone, and sees nothing of an attempt that is void: it is only with `whole` that there is one."""

    led = True

    def __init__(self, events: AsyncIterator[FreshEvent], *, whole: bool) -> None:
        self._events = events
        self._whole = whole

    async def __anext__(self) -> Grounded | Token | Landed | StoredElsewhere:
        event = await anext(self._events)
        while isinstance(event, Restart) or (self._whole and not isinstance(event, Landed)):
            event = await anext(self._events)
        return event


AT_ONCE: Final = 16
"""Refreshments that one worker has under way; past them an expired answer is served unrefreshed."""


class Refresher:
    """Starts refreshments and forgets them."""

    def __init__(self, fresh: FreshAnswers, flights: Flights, observer: QueryObserver) -> None:
        self._fresh = fresh
        self._flights = flights
        self._observer = observer
        self._tasks: dict[FlightKey, asyncio.Task[None]] = {}

    def start(self, query: Query, lookup: Lookup) -> None:
        """Refreshes what was looked up, unless this worker is at it already, or at too much. No I/O here."""
        if lookup.place is None:
            return
        key = FlightKey(lookup.place.scope, lookup.place.digest)
        if key in self._tasks:
            return
        if len(self._tasks) >= AT_ONCE:
            self._observer.refreshing("too_many")
            return
        task = asyncio.create_task(self._refresh(query, lookup, key), name="refresh")
        self._tasks[key] = task
        let_go(task)
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def aclose(self) -> None:
        """Ends what is under way."""
        await cancelled(self._tasks.values())

    async def _refresh(self, query: Query, lookup: Lookup, key: FlightKey) -> None:
        try:
            async with self._flights.sole(key) as claim:
                outcome = await self._generate(query, lookup, claim) if claim is not None else "elsewhere"
        except RagherdError:
            outcome = "failed"  # the breaker and the metrics of Ollama know why
        self._observer.refreshing(outcome)

    async def _generate(self, query: Query, lookup: Lookup, claim: Claim) -> RefreshOutcome:
        stored = False
        async with self._fresh.generate(query, lookup, Stages(), claim, whole=True, background=True) as events:
            async for event in events:
                stored = isinstance(event, Landed) and event.entry is not None
        return "stored" if stored else "not_stored"
