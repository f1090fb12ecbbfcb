"""THE FLOW: answers one question; its steps in order.

0. if a setting enables it, a question with history is rewritten to stand alone
1. the exact tier: the same question, one round trip
2. the embedding
3. the semantic tier: a question that means the same, one round trip, and the guards that may object
4. single flight: if any worker is answering the same question, its answer is shared
5. the passages of the knowledge base that the answer is grounded in
6. the language model, through the bulkhead and the circuit breaker
7. the answer is stored for the whole fleet

Both forms of an answer use it: `stream` yields it as it is generated, `answer` waits for its end. If Redis is down or
the embedder hangs, the question is answered without the cache. If Ollama fails, the cache may still have an answer,
possibly an expired one. If a caller leaves, the flow ends, and so does a generation that nobody else waits for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from api.cancellation import Deadline
from api.errors import BreakerOpen, BulkheadFull, InternalError, OnlyIfCached, RagherdError, RateLimited, UpstreamError
from api.ports.coordination import UNKNOWN, FlightEvent, Flights, FlightSubscription
from api.ports.question import (
    VARIANT_HEADER,
    AnswerEvent,
    AnswerFinished,
    AnswerQueued,
    AnswerStarted,
    Query,
    Timings,
)
from api.ports.telemetry import Telemetry
from api.query.cache import Lookup, SemanticCache, Turn, at_once
from api.query.experiments import ExperimentView
from api.query.repeats import Found, Repeat, RepeatedLookups
from api.values import (
    CacheMatch,
    CacheStatus,
    CompletedAnswer,
    FlightKey,
    GroundedSources,
    Queued,
    Source,
    StoredElsewhere,
    Token,
    Usage,
)

if TYPE_CHECKING:
    from api.ports.limits import Charge
    from api.query.condense import Condenser
    from api.query.generate import FreshAnswers, Refresher
    from api.query.limits import Limiter
    from api.query.shadow_calls import ShadowCalls


class _Request:
    """The state of one request. `asked` is the caller's query; `query` may have been rewritten.

    `buffered`: the caller sees no token before the end, so that the answer may restart.
    """

    def __init__(
        self, asked: Query, *, buffered: bool, timings: Timings | None = None, lookup: Lookup | None = None
    ) -> None:
        self.asked = self.query = asked
        self.variant = "" if asked.variant is None else asked.variant.label
        self.buffered = buffered
        self.timings = timings or Timings()
        self.lookup = lookup or Lookup()
        self.status = CacheStatus.HIT
        self.sources: tuple[Source, ...] = ()
        self.flight: FlightSubscription | None = None
        self.tokens = 0
        """Tokens that the caller has read of a fresh answer."""
        self.limit: Callable[[], AbstractAsyncContextManager[None]]
        """Limits a wait to the caller's deadline."""
        self.limit = nullcontext if asked.timeout is None else Deadline(asked.timeout).watched

    def end(self) -> None:
        """Ends the timings. The wait for the model includes the retrieval, which is subtracted."""
        timings = self.timings
        timings.generate = max(0.0, timings.generate - timings.retrieve)
        timings.total = time.perf_counter() - timings.began


class QueryService:
    """Answers questions for one worker."""

    def __init__(
        self,
        condenser: Condenser | None,
        shared: SemanticCache,
        flights: Flights,
        fresh: FreshAnswers,
        refresher: Refresher,
        observer: Telemetry,
        shadow: ShadowCalls | None = None,
        experiments: ExperimentView | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        """`condenser` is None if questions with history are answered without rewriting.

        `shadow` samples answers from the cache. A running experiment gives each query the settings of a variant.
        """
        self._experiments = experiments or ExperimentView()
        self._condenser = condenser
        self._shared = shared
        self._flights = flights
        self._fresh = fresh
        self._refresher = refresher
        self._observer = observer
        self._shadow = shadow
        self._limiter = limiter

    async def answer(self, query: Query) -> AnswerFinished:
        """Raises `OnlyIfCached`, `BulkheadFull`, `BreakerOpen`, `UpstreamError`, `DeadlinePassed`; else degrades."""
        if self._experiments.running is not None:
            query = self._experiments.running.assigned(query)
        async with aclosing(self._events(_Request(query, buffered=True))) as events:
            async for event in events:
                if isinstance(event, AnswerFinished):
                    return event
        raise AssertionError("the flow ends with an answer or an error")

    def near(self, repeat: Repeat, request_id: str) -> AnswerFinished | None:
        """Answers a question that was answered before from this worker's copies, without I/O, or returns None."""
        lookups = self._lookups(repeat)
        found = lookups.near(repeat) if lookups is not None else None
        return self._repeated(repeat, request_id, found, Timings()) if found is not None else None

    async def again(self, repeat: Repeat, request_id: str, charge: Charge | None = None) -> AnswerFinished | None:
        """Answers a question that was answered before, if what answered it then still does and its limits allow it.

        If not, returns None and counts nothing but the charge: `answer` or `stream` follows. Raises `StoreUnavailable`.
        """
        if charge is not None and self._limiter is not None:
            self._limiter.refusals.recall(charge)
            if charge.is_refused:
                return None
        lookups, timings = self._lookups(repeat), Timings()
        found = await lookups.read(repeat, timings, charge) if lookups is not None else None
        if found is None:
            return None
        if charge is not None and self._limiter is not None:
            await self._limiter.decide(charge)
            if charge.is_refused:
                return None
            await self._limiter.settle(charge, is_hit=True)
        return self._repeated(repeat, request_id, found, timings)

    async def refuse_unread(self, tenant: str, charge: Charge) -> None:
        """Refuses a question whose body was not read. Raises `RateLimited`."""
        assert self._limiter is not None, "without limits nothing is refused"
        try:
            await self._limiter.settle(charge)
        except RateLimited as error:
            self._observer.refused_unread(tenant, error)
            raise

    def _lookups(self, repeat: Repeat) -> RepeatedLookups | None:
        is_rewritten = repeat.query.history and self._condenser is not None
        return None if is_rewritten or self._experiments.running is not None else self._shared.repeats

    def _repeated(self, repeat: Repeat, request_id: str, found: Found, timings: Timings) -> AnswerFinished:
        request = _Request(repeat.query, buffered=True, timings=timings, lookup=Lookup.repeated(found))
        answered = self._cached(request)
        self._count(request, answered, request_id)
        return answered

    def stream(self, query: Query) -> AbstractAsyncContextManager[AsyncIterator[AnswerEvent]]:
        """Yields `AnswerStarted`, the `Token`s, and `AnswerFinished`, once stored.

        Raises what `answer` does, between tokens too.

        The flow starts when the first event is requested. Leaving the context early ends the generation.
        """
        if self._experiments.running is not None:
            query = self._experiments.running.assigned(query)
        return aclosing(self._events(_Request(query, buffered=False)))

    async def _events(self, request: _Request) -> AsyncGenerator[AnswerEvent, None]:
        """Runs the flow. Its end is counted once: answered, refused, or left by its caller."""
        try:
            async with request.limit():
                await self._look_up(request)
            async with self._open_stream(request), AsyncExitStack() as stack:
                begun = None if request.lookup.match is not None else await self._begin(request, stack)
                while begun is not None and isinstance(begun[1], Queued):
                    yield AnswerQueued(begun[1], _status(request), request.variant)
                    begun = await self._begin(request, stack)
                if begun is not None:
                    flight, event = begun
                    yield AnswerStarted(request.status, request.sources, variant=request.variant)
                    while isinstance(event, Token):
                        request.tokens += 1
                        yield event
                        event = await self._next(request, flight)
                    answered = self._generated(request, event)
            if begun is None:
                answered = self._cached(request)
                yield AnswerStarted(answered.status, answered.sources, answered.match, request.variant)
                yield Token(answered.answer)
        except RagherdError as error:
            if _status(request) is CacheStatus.MISS:
                self._observer.missed()
            self._observer.refused(request.asked, error)
            if request.variant:
                raise error.with_header(VARIANT_HEADER, request.variant) from error
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._observer.left(request.asked)
            if request.status is not CacheStatus.COALESCED:
                self._spend(request, Usage(0, request.tokens))  # what its caller has read
            raise
        except Exception:  # a bug: the caller gets 500, so the error rate must show it
            self._observer.refused(request.asked, InternalError())
            raise
        self._count(request, answered)
        yield answered

    def _count(self, request: _Request, answered: AnswerFinished, request_id: str | None = None) -> None:
        request.end()
        self._spend(request, answered.usage)
        key = request.lookup.key
        flight = FlightKey(key.scope, key.digest) if key is not None else None
        self._observer.answered(request.asked, answered, flight, request_id)

    def _spend(self, request: _Request, usage: Usage) -> None:
        if request.asked.charge is not None and self._limiter is not None:
            self._limiter.spend(request.asked.charge.plan, usage)

    # -- by the cache -------------------------------------------------------------------------------------------------

    async def _look_up(self, request: _Request) -> None:
        charge = request.asked.charge
        condenser = self._condenser if request.asked.history else None
        if charge is not None and self._limiter is not None:
            if charge.charges_hits or not request.asked.cache_control.reads:
                self._limiter.refusals.recall(charge)
                if condenser is not None:  # the language model, which costs more than a round trip
                    await self._limiter.decide(charge)
            if charge.is_refused:  # by the fast path, or as an earlier one was
                await self._limiter.settle(charge)
        if condenser is not None:
            async with self._turn(request) as may_search:
                if may_search:
                    request.query = await condenser.standalone(request.asked, request.timings)
                    await self._look_in_cache(request, at_once)
        else:
            await self._look_in_cache(request, partial(self._turn, request))
        if charge is not None and self._limiter is not None:
            await self._limiter.settle(charge, is_hit=request.lookup.match is not None)

    async def _look_in_cache(self, request: _Request, turn: Turn) -> None:
        with suppress(RateLimited):  # then the limiter refuses it
            request.lookup = await self._shared.look_up(request.query, request.timings, turn)

    def _turn(self, request: _Request) -> AbstractAsyncContextManager[bool]:
        """Limits how often the cache is searched by meaning for a caller whose limits refuse what it does not have."""
        charge = request.asked.charge
        if self._limiter is None or charge is None:
            return at_once()
        return self._limiter.search_turn(charge, streams=not request.buffered)

    def _open_stream(self, request: _Request) -> AbstractAsyncContextManager[None]:
        """Counts a stream whose answer the cache does not have. Raises `RateLimited`."""
        charge = request.asked.charge
        if charge is None or self._limiter is None or request.buffered or request.lookup.match is not None:
            return nullcontext()
        return self._limiter.stream(charge)

    def _cached(self, request: _Request) -> AnswerFinished:
        """Serves a cached answer; an expired one is refreshed in the background."""
        lookup = request.lookup
        assert lookup.match is not None, "the cache has an answer"
        if lookup.stale:
            request.status = CacheStatus.STALE
            self._refresher.start(request.query, lookup)
        self._shared.used(lookup.match)
        if self._shadow is not None and random.random() < self._shadow.rates[lookup.match.kind]:  # noqa: S311 - a sample, no secret
            self._shadow.sample(request.query, lookup, stale=request.status is CacheStatus.STALE)
        found = lookup.match.answer
        return AnswerFinished(
            found.answer,
            found.model,
            request.status,
            request.timings,
            found.sources,
            lookup.match,
            entry=found.entry,
            variant=request.variant,
            agreed=lookup.agreed,
        )

    # -- by the language model ----------------------------------------------------------------------------------------

    async def _begin(self, request: _Request, stack: AsyncExitStack) -> tuple[FlightSubscription, FlightEvent] | None:
        """Waits for the first token of an answer that this caller or an earlier one started.

        Also returns for each new position in the queue, and is then called again. Returns None if the cache has an
        answer after all: one that another worker has just stored or, if Ollama fails, an expired one. No token is sent
        before, since an error may occur until then.
        """
        if request.query.cache_control.only_if_cached:
            raise OnlyIfCached("The question has no cached answer, and the request allows no other.")
        try:
            while request.lookup.match is None:
                flight = request.flight
                if flight is None:
                    flight = await stack.enter_async_context(self._flight(request))
                event = await self._next(request, flight)
                while isinstance(event, GroundedSources):
                    request.sources = event.sources
                    event = await self._next(request, flight)
                request.flight = flight if isinstance(event, Queued) else None
                if isinstance(event, Queued):
                    return flight, event
                if not isinstance(event, StoredElsewhere):
                    request.status = _status(request) if flight.led else CacheStatus.COALESCED
                    request.sources = event.sources if isinstance(event, CompletedAnswer) else request.sources
                    return flight, event
                await stack.aclose()
                async with request.limit():
                    await self._shared.look_again(request.query, request.lookup, request.timings)
        except RagherdError as error:
            await stack.aclose()
            expired = await self._expired(request, error)
            if expired is None:
                raise
            request.lookup.match, request.status = expired, CacheStatus.STALE
        return None

    async def _expired(self, request: _Request, error: RagherdError) -> CacheMatch | None:
        """Returns an expired answer if Ollama failed or is busy, but not if the request caused the error."""
        if not isinstance(error, BreakerOpen | BulkheadFull | UpstreamError) or error.status < 500:
            return None
        return await self._shared.expired(request.query, request.lookup, request.timings)

    def _flight(self, request: _Request) -> AbstractAsyncContextManager[FlightSubscription]:
        """Joins the flight that equal questions share; a caller who wants no shared answer gets a separate one."""
        query, lookup, buffered = request.query, request.lookup, request.buffered
        lead = partial(self._fresh.generate, query, lookup, request.timings, buffered=buffered)
        if lookup.key is None or not query.cache_control.reads:
            return self._flights.alone(lead, buffered=buffered, priority=query.priority)
        return self._flights.join(
            FlightKey(lookup.key.scope, lookup.key.digest),
            lead,
            asked_ms=lookup.now_ms if lookup.available else 0,
            not_before_ms=lookup.invalidated_ms if lookup.available else UNKNOWN,
            buffered=buffered,
            priority=query.priority,
            early=partial(self._fresh.ask_early, query, lookup),
        )

    async def _next(self, request: _Request, flight: FlightSubscription) -> FlightEvent:
        """Waits for the next event. Only this wait counts as the model's time."""
        started = time.perf_counter()
        try:
            async with request.limit():
                return await anext(flight)
        finally:
            request.timings.generate += time.perf_counter() - started

    def _generated(self, request: _Request, end: FlightEvent) -> AnswerFinished:
        """Returns the end of a generated answer. A caller who shares another's answer is charged no tokens."""
        assert isinstance(end, CompletedAnswer), "what has begun does not turn out to be stored elsewhere"
        is_own = request.status is not CacheStatus.COALESCED
        if request.status is CacheStatus.MISS:
            self._observer.missed()
        return AnswerFinished(
            end.text,
            end.model,
            request.status,
            request.timings,
            end.sources,
            usage=end.usage if is_own else Usage(),
            completed=end,
            entry=end.entry,
            stored=is_own and end.entry is not None,
            variant=request.variant,
        )


def _status(request: _Request) -> CacheStatus:
    """Returns the cache status of a fresh answer: a miss if the cache was asked, else bypass."""
    asked_in_vain = request.lookup.available and request.query.cache_control.reads
    return CacheStatus.MISS if asked_in_vain else CacheStatus.BYPASS
