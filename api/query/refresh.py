"""Refreshes expired answers in the background: each by one worker of the fleet, behind all users."""

from __future__ import annotations

import asyncio
from typing import Final

from api.background import cancelled, let_go
from api.errors import RagherdError
from api.model import FlightKey, Landed
from api.ports.answers import Claim
from api.ports.flights import Flights
from api.query.answered import QueryObserver, RefreshOutcome, Stages
from api.query.fresh_answer import FreshAnswers
from api.query.question import Query
from api.query.shared_answers import Lookup

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
