"""Whether an answer may be shared with others who ask the same, and the generation of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from api.model import FlightKey, Grounded, Landed, Restart, StoredElsewhere, Token
from api.ports.flights import Flights, Seat
from api.query.answered import Stages
from api.query.fresh_answer import FreshAnswers, FreshEvent
from api.query.question import Query
from api.query.shared_answers import Lookup


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
