"""Single flight over the fleet: equal questions in flight at once are generated once, wherever they were asked.

In one process callers share a task; over the fleet the first worker to ask has the lead, by a lease that it renews, and
tells those who follow. A leader that dies is replaced when its lease ends. Without Redis each worker leads for its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from api.background import cancelled
from api.errors import InternalError, RagherdError, StoreUnavailable
from api.flights.events import FlightEvents
from api.flights.flight import Flight, FlightSeat
from api.flights.following_flight import FollowingFlight
from api.flights.state import LEASE_MS, Joined, Message, Verdict
from api.flights.store import FlightStore
from api.flights.wire import GroundedIn, HandedOver, Piece, Said, encode
from api.model import FlightKey, Grounded, Landed, Restart, StoredElsewhere, Token
from api.ports.answers import Claim
from api.ports.flights import Lead

BATCH_SECONDS: Final = 0.03
"""How long the pieces of an answer are gathered for those who follow, but for the first."""


class Flights:
    """The flights of one worker. `patience`: seconds that a follower waits for a word of the leader."""

    def __init__(self, store: FlightStore, patience: float, events: FlightEvents | None = None) -> None:
        self.store = store
        self._patience = patience
        self._events = events or FlightEvents()
        self._flights: dict[FlightKey, Flight] = {}
        self._flying: set[asyncio.Task[None]] = set()
        self._soles: set[Claim] = set()
        self._aside: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    @asynccontextmanager
    async def join(
        self, key: FlightKey, lead: Lead, *, asked_ms: int, whole: bool, not_before_ms: int = 0, fleet: bool = True
    ) -> AsyncGenerator[FlightSeat, None]:
        """See `ports.Flights`."""
        flight = self._flights.get(key)
        if flight is not None and flight.asked_ms <= not_before_ms and not_before_ms:
            flight = None  # its callers asked before, and get what they asked for
        first = flight is None
        if flight is None:
            flight = self._flights[key] = Flight(key, lead, asked_ms, not_before_ms, fleet=fleet)
            flight.task = asyncio.create_task(self._fly(flight), name="flight")
            self._flying.add(flight.task)
            flight.task.add_done_callback(self._flying.discard)
        reader = flight.progress.reader(whole=whole)
        flight.seats += 1
        try:
            yield FlightSeat(flight, reader, first=first)
        finally:
            reader.close()
            flight.seats -= 1
            if not flight.seats and flight.progress.end is None:
                self._start(self._forsake(flight))

    @asynccontextmanager
    async def sole(self, key: FlightKey) -> AsyncGenerator[Claim | None, None]:
        """The lead of work on `key` that nobody follows; None where another worker has it, or Redis is down."""
        claim = None
        with suppress(StoreUnavailable):
            claim = await self.store.sole(key)
        if claim is None:
            yield None
            return
        self._soles.add(claim)
        try:
            yield claim
        finally:
            self._soles.discard(claim)
            with suppress(StoreUnavailable):
                await self.store.release(claim)

    # -- what a flight is ---------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        try:
            await self._take_part(flight)
        except Exception as error:  # noqa: BLE001 - a fault of our own is every caller's to see
            flight.progress.finish(error)
        finally:
            flight.decided.set()
            flight.progress.finish(InternalError())
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    async def _take_part(self, flight: Flight) -> None:
        joined = await self._join(flight)
        if joined is not None and joined.verdict is Verdict.FOLLOW:
            flight.follow()
            joined = await FollowingFlight(flight, self.store, joined.fence, self._patience).read_along()
            if flight.progress.end is None:
                self._events.alone() if joined is None else self._events.handed_over()
                flight.progress.restart()
        if flight.progress.end is not None:
            return
        if joined is not None and joined.verdict is Verdict.STORED:
            flight.progress.finish(StoredElsewhere())
            return
        await self._lead(flight, None if joined is None else self.store.claim(flight.key, joined.fence))

    async def _join(self, flight: Flight) -> Joined | None:
        if not flight.fleet:
            return None
        with suppress(StoreUnavailable):
            return await self.store.join(flight.key, flight.asked_ms, flight.not_before_ms)
        return None

    async def _lead(self, flight: Flight, claim: Claim | None) -> None:
        """Generates, for callers here and those who follow. A cancellation is not concluded: who cancels does that."""
        flight.lead(claim)
        said: Said
        try:
            said = await self._generate(flight)
        except RagherdError as error:
            said = error
        except Exception as error:  # noqa: BLE001 - a fault of our own: the callers here have its traceback
            flight.progress.finish(error)
            said = InternalError()
        flight.progress.finish(said)
        await self._conclude(flight, said)

    async def _generate(self, flight: Flight) -> Landed:
        async with flight.generate(flight.claim) as events:
            async for event in events:
                if isinstance(event, Token):
                    flight.progress.add(event.text)
                    await flight.progress.room()
                elif isinstance(event, Grounded):
                    flight.progress.ground(event.sources)
                elif isinstance(event, Restart):
                    flight.progress.restart()
                else:
                    return event
        raise InternalError

    async def _conclude(self, flight: Flight, said: Said) -> None:
        """The last word to those who follow, who must not wait for a lease to end."""
        if flight.claim is None:
            return
        with suppress(StoreUnavailable):
            if not await self.store.end(flight.key, flight.claim.fence, encode(said)):
                self._events.fenced()

    # -- those who follow ---------------------------------------------------------------------------------------------

    def told(self, message: Message) -> None:
        """Takes what another worker said."""
        scope, _, digest = message.flight.rpartition(":")
        flight = self._flights.get(FlightKey(scope, digest))
        if flight is None:
            return
        if message.what == "followed":
            self._publish(flight)
        else:
            flight.woken.set()

    def _publish(self, flight: Flight) -> None:
        if flight.claim is not None and not flight.is_published and flight.progress.end is None:
            flight.is_published = True
            self._start(self._keep_telling(flight, flight.claim))

    async def _keep_telling(self, flight: Flight, claim: Claim) -> None:
        tail = flight.progress.tail()
        try:
            while flight.progress.end is None and flight.claim is claim:
                sources = tail.take_sources()
                if sources is not None and await self._tell(flight, claim, GroundedIn(*sources)) is None:
                    return
                attempt, at, text = tail.take()
                if text and await self._tell(flight, claim, Piece(attempt, at, text)) is None:
                    return
                await asyncio.sleep(BATCH_SECONDS if text else 0)
                if not tail.lag and flight.progress.end is None:
                    await flight.progress.changed()
        except StoreUnavailable:
            pass  # begun anew, from the beginning, with the next look
        finally:
            flight.progress.leave(tail)
            flight.is_published = False

    async def _tell(self, flight: Flight, claim: Claim, said: Said) -> int | None:
        followers = await self.store.publish(flight.key, claim.fence, [encode(said)])
        if followers is None:
            self._lost(flight, claim)
        return followers

    def _lost(self, flight: Flight, claim: Claim) -> None:
        if flight.claim is claim:
            flight.claim = None
            self._events.fenced()

    # -- leaving ------------------------------------------------------------------------------------------------------

    async def _forsake(self, flight: Flight) -> None:
        """Nobody here waits any more: the flight goes on for others alone."""
        await flight.decided.wait()
        if await self._is_followed(flight) or flight.seats or flight.progress.end is not None:
            await self.tend()
            return
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        assert flight.task is not None
        await cancelled([flight.task])
        if not flight.leads:
            with suppress(StoreUnavailable):
                await self.store.leave(flight.key)

    async def _is_followed(self, flight: Flight) -> bool:
        if flight.claim is None or flight.seats:
            return False
        try:
            return await self.store.abandon(flight.key, flight.claim.fence) > 0
        except StoreUnavailable:
            return False

    async def tend(self) -> None:
        """Renews the leads of this worker, and tells those who have come to follow without being heard."""
        flights = [(flight, flight.claim) for flight in self._flights.values() if flight.claim is not None]
        now = time.monotonic()
        leads = [(f.key, claim.fence, now - f.renewed < LEASE_MS / 1000) for f, claim in flights]
        tended = await self.store.tend(leads)
        for flight, claim in flights:
            if flight.key not in tended:
                continue
            followers = tended[flight.key]
            if followers is None:
                self._lost(flight, claim)
                continue
            flight.renewed = now
            if followers:
                self._publish(flight)
        for claim in tuple(self._soles):
            with suppress(StoreUnavailable):
                await self.store.renew(claim)

    async def aclose(self) -> None:
        """Ends what is under way. Those who follow are told, so that one of them takes the lead at once."""
        flights = list(self._flights.values())
        self._flights.clear()
        await cancelled([*self._flying, *self._aside])
        for flight in flights:
            await self._conclude(flight, HandedOver())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
