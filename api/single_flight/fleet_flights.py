"""Single flight over the fleet: equal questions that are in flight at once are generated only once.

Callers in one process share a task. In the fleet the first worker to ask takes a lease, generates, and publishes to the
followers. If a leader dies, a follower replaces it when the lease ends. Without Redis each worker generates for its own
callers. Messages wake the workers, and a background task renews the leases.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from api.cancellation import Background, cancel_and_wait, log_failure
from api.errors import InternalError, RagherdError, StoreUnavailable
from api.ports.answer_cache import Claim
from api.ports.coordination import UNKNOWN, AskEarly, FlightSubscription, GenerateAnswer
from api.ports.telemetry import Telemetry
from api.single_flight.buffer import AnswerBuffer, Flight, FlightReader, Tail
from api.single_flight.flight import LEASE_MS, FlightMessage, FlightRole, FlightStore, FollowingFlight, Joined
from api.single_flight.wire import FlightPayload, LeaderLeft, SourcesMessage, TextMessage, encode
from api.values import CompletedAnswer, FlightKey, Priority, StoredElsewhere

ALONE: Final = FlightKey("", "")
"""The key of a flight that no other caller can join."""
BATCH_SECONDS: Final = 0.03
"""Seconds in which text is batched for the followers, except for the first batch."""


class OwnGeneration:
    """Implements `ports.FlightSubscription` for a single caller who wants only the end."""

    led = True

    def __init__(self, lead: GenerateAnswer, priority: Priority) -> None:
        self._lead = lead
        self._priority = priority

    async def __anext__(self) -> CompletedAnswer:
        return await self._lead(AnswerBuffer(priority=self._priority), None)


class FleetFlights:
    """The flights of one worker. `patience`: seconds that a follower waits for a silent leader."""

    def __init__(self, store: FlightStore, patience: float, events: Telemetry | None = None) -> None:
        self.store = store
        self._patience = patience
        self._events = events or Telemetry()
        self._flights: dict[FlightKey, Flight] = {}
        self._flying: set[asyncio.Task[None]] = set()
        self._exclusive_claims: set[Claim] = set()
        self._background_tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    @asynccontextmanager
    async def join(
        self,
        key: FlightKey,
        lead: GenerateAnswer,
        *,
        asked_ms: int,
        buffered: bool,
        not_before_ms: int = 0,
        priority: Priority = Priority.USER,
        early: AskEarly | None = None,
    ) -> AsyncGenerator[FlightReader, None]:
        """Subscribes to the flight. `lead` is called if this worker generates; the last subscriber to leave cancels it.

        `asked_ms`: when the cache missed, by Redis's clock. `not_before_ms`: when such answers were last deleted, or
        `UNKNOWN`; flights that began earlier are not joined. `buffered`: this caller wants no tokens. A user who joins
        a batch flight promotes it. `early` asks for a permit while Redis is asked who leads.
        """
        flight = self._flights.get(key)
        ended = flight if flight is not None and flight.buffer.end is not None else None
        if flight is not None and not flight.may_share(not_before_ms):
            flight = None  # its callers have their answer, or asked before a change and get what they asked for
        first = flight is None
        if flight is None:
            asked = (asked_ms, not_before_ms)
            flight = self._flights[key] = Flight(key, lead, *asked, self._require_wanted, priority, early)
        elif priority is Priority.USER and flight.buffer.place.priority is not priority:
            flight.buffer.place.promote()
        reader = FlightReader(flight, buffered=buffered, first=first, unchecked=not first and not_before_ms == UNKNOWN)
        flight.subscribers += 1
        if first:
            flight.begin(self._run(flight, ended), self._flying)
        try:
            yield reader
        finally:
            flight.subscribers -= 1
            self._end_if_unwanted(flight)
            reader.close()

    @asynccontextmanager
    async def alone(
        self, lead: GenerateAnswer, *, buffered: bool, priority: Priority = Priority.USER
    ) -> AsyncGenerator[FlightSubscription, None]:
        """Generates for one caller without sharing. A buffered caller generates in its current task."""
        if buffered:
            yield OwnGeneration(lead, priority)
            return
        flight = Flight(ALONE, lead, 0, 0, self._require_wanted, priority)
        flight.subscribers = 1
        reader = FlightReader(flight, buffered=buffered, first=True)
        task = flight.begin(self._run_alone(flight), self._flying)
        try:
            yield reader
        finally:
            reader.close()
            flight.subscribers = 0
            await cancel_and_wait([task])

    @asynccontextmanager
    async def exclusive(self, key: FlightKey) -> AsyncGenerator[Claim | None, None]:
        """Takes the lead of work without followers; None if another worker has it, or Redis is down."""
        claim = None
        with suppress(StoreUnavailable):
            claim = await self.store.exclusive(key)
        if claim is None:
            yield None
            return
        self._exclusive_claims.add(claim)
        try:
            yield claim
        finally:
            self._exclusive_claims.discard(claim)
            if not claim.ended:
                with suppress(StoreUnavailable):
                    await self.store.release(claim)

    # -- running a flight ---------------------------------------------------------------------------------------------

    async def _run(self, flight: Flight, ended: Flight | None) -> None:
        """Runs a flight, after an earlier one of its key has told the followers its end."""
        try:
            if ended is not None and ended.task is not None:
                await asyncio.wait([ended.task])
            await self._take_part(flight)
        except Exception as error:  # noqa: BLE001 - a fault of our own is every caller's to see
            flight.buffer.finish(error)
        finally:
            flight.decided.set()
            flight.buffer.finish(InternalError())
            flight.buffer.place.withdraw()
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            flight.buffer.let_go()

    async def _run_alone(self, flight: Flight) -> None:
        try:
            await self._lead(flight, None)
        finally:
            flight.buffer.finish(InternalError())
            flight.buffer.let_go()

    async def _take_part(self, flight: Flight) -> None:
        if flight.early is not None:
            flight.early(flight.buffer.place)
        joined = await self._join(flight)
        if joined is not None and joined.role is not FlightRole.LEAD:
            flight.buffer.place.withdraw()
        if joined is not None and joined.role is FlightRole.FOLLOW:
            flight.follow(joined.place)
            joined = await FollowingFlight(flight, self.store, joined.fence, self._patience).read_along()
            if flight.buffer.end is None:
                self._events.flight_alone() if joined is None else self._events.flight_handed_over()
                flight.buffer.begin_again()
        if flight.buffer.end is not None:
            return
        if joined is not None and joined.role is FlightRole.STORED:
            flight.buffer.finish(StoredElsewhere())
            return
        await self._lead(flight, None if joined is None else self.store.claim(flight.key, joined.fence))

    async def _join(self, flight: Flight) -> Joined | None:
        with suppress(StoreUnavailable):
            return await self.store.join(*flight.joining)
        return None

    async def _lead(self, flight: Flight, claim: Claim | None) -> None:
        """Generates for this worker's callers and the followers. If it is cancelled, the canceller ends the flight."""
        flight.leads, flight.claim, flight.renewed = True, claim, time.monotonic()
        if flight.first is not None:
            flight.first.led = True
        flight.decided.set()
        await self._require_wanted(flight)
        said: CompletedAnswer | RagherdError = InternalError()
        try:
            try:
                said = await flight.generate(flight.buffer, flight.claim)
            except RagherdError as error:
                said = error
            except Exception as error:  # noqa: BLE001 - a fault of our own: the callers here have its traceback
                flight.buffer.finish(error)
            flight.buffer.finish(said)
            await self._conclude(flight, said)
        finally:
            del said

    async def _conclude(self, flight: Flight, said: FlightPayload) -> None:
        """Publishes the end at once, so that followers need not wait for the lease to expire.

        Does nothing if nobody follows and storing the answer has ended the flight.
        """
        claim = flight.claim
        if claim is None or claim.ended:
            return
        with suppress(StoreUnavailable):
            if not await self.store.end(flight.key, claim.fence, encode(said)) and claim.ended is False:
                self._events.flight_fenced()

    # -- followers ----------------------------------------------------------------------------------------------------

    def on_message(self, message: FlightMessage) -> None:
        """Handles a message from another worker."""
        scope, _, digest = message.flight.rpartition(":")
        flight = self._flights.get(FlightKey(scope, digest))
        if flight is None:
            return
        if message.what == "followed":
            self._publish(flight)
        elif message.what == "promoted":
            flight.buffer.place.promote()
        elif message.what == "left":
            self._end_if_unwanted(flight)
        else:
            flight.woken.set()

    def _publish(self, flight: Flight) -> None:
        if flight.claim is not None and not flight.is_published and flight.buffer.end is None:
            flight.is_published = True
            self._start(self._keep_telling(flight, flight.claim))

    async def _keep_telling(self, flight: Flight, claim: Claim) -> None:
        tail = Tail(flight.buffer)
        try:
            while flight.buffer.end is None and flight.claim is claim:
                sources = tail.take_sources()
                if sources is not None and await self._tell(flight, claim, SourcesMessage(*sources)) is None:
                    return
                place = tail.take_place()
                if place is not None and await self._tell(flight, claim, place) is None:
                    return
                attempt, at, text = tail.take()
                if text and await self._tell(flight, claim, TextMessage(attempt, at, text)) is None:
                    return
                await asyncio.sleep(BATCH_SECONDS if text else 0)
                if not tail.lag and flight.buffer.end is None:
                    await flight.buffer.changed()
        except StoreUnavailable:
            pass  # publishing restarts from the beginning at the next renewal
        finally:
            flight.buffer.leave(tail)
            flight.is_published = False

    async def _tell(self, flight: Flight, claim: Claim, said: FlightPayload) -> int | None:
        followers = await self.store.publish(flight.key, claim.fence, [encode(said)])
        if followers is None:
            self._lost(flight, claim)
        elif not followers:
            self._end_if_unwanted(flight)
        return followers

    def _lost(self, flight: Flight, claim: Claim) -> None:
        if flight.claim is claim and claim.ended is False:
            flight.claim = None
            self._events.flight_fenced()

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _end_if_unwanted(self, flight: Flight) -> None:
        """Ends a flight that nobody waits for any more, in the background. No I/O here."""
        if not flight.subscribers and flight.buffer.end is None and not flight.ending:
            flight.ending = True
            self._start(self._cancel_if_unwanted(flight))

    async def _cancel_if_unwanted(self, flight: Flight) -> None:
        """Cancels a flight without local callers unless followers wait for it."""
        try:
            await flight.decided.wait()
            if await self._is_wanted(flight):
                await self.renew_leases()  # publish to followers whose messages were lost
                return
        finally:
            flight.ending = False
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if flight.task is not None:
            await cancel_and_wait([flight.task])
        if not flight.leads and flight.key not in self._flights:  # a newer one has the place now
            with suppress(StoreUnavailable):
                await self.store.leave(flight.key, flight.place)

    async def _require_wanted(self, flight: Flight) -> None:
        """Cancels the flight's task if nobody waits for the answer, before expensive work begins."""
        if flight.task is not None and flight.task.cancelling():
            raise asyncio.CancelledError
        if not flight.subscribers and not await self._is_wanted(flight):
            raise asyncio.CancelledError

    async def _is_wanted(self, flight: Flight) -> bool:
        """Returns whether anybody waits, on any worker. If nobody does, gives up the lead."""
        if flight.subscribers or flight.buffer.end is not None:
            return True
        if await self._is_followed(flight):
            return True
        if flight.subscribers and flight.buffer.end is None:
            await self.renew_leases()  # a caller has arrived meanwhile: take the lead again
        return bool(flight.subscribers) or flight.buffer.end is not None

    async def _is_followed(self, flight: Flight) -> bool:
        if flight.claim is None:
            return False
        flight.abandoned = True  # from here on a renewal must not take the lead again
        with suppress(StoreUnavailable):
            if await self.store.abandon(flight.key, flight.claim.fence) > 0:
                flight.abandoned = False
        return not flight.abandoned

    async def renew_leases(self) -> None:
        """Renews this worker's leads, and publishes to followers whose messages were lost."""
        flights = [
            (flight, flight.claim)
            for flight in self._flights.values()
            if flight.claim is not None and not flight.claim.ended and (flight.subscribers or not flight.abandoned)
        ]
        now = time.monotonic()
        # A lead that may just have ended with its answer must not come back.
        leads = [(f.key, c.fence, not self._is_over(f, c) and now - f.renewed < LEASE_MS / 1000) for f, c in flights]
        renewed = await self.store.renew_leases(leads)
        for flight, claim in flights:
            if flight.key not in renewed:
                continue
            followers = renewed[flight.key]
            if self._is_over(flight, claim):
                if followers is not None:
                    self._start(self._end_restored(flight, claim))
            elif followers is None:
                self._lost(flight, claim)
            else:
                flight.renewed, flight.abandoned = now, False
                if followers:
                    self._publish(flight)
                else:
                    self._end_if_unwanted(flight)
        for claim in tuple(self._exclusive_claims):
            with suppress(StoreUnavailable):
                await self.store.renew(claim)

    def _is_over(self, flight: Flight, claim: Claim) -> bool:
        """Returns whether the lead has ended, is about to, or may have."""
        has_ended = claim.ended is not False or flight.buffer.end is not None
        is_given_up = flight.abandoned and not flight.subscribers
        return has_ended or is_given_up or self._flights.get(flight.key) is not flight

    async def _end_restored(self, flight: Flight, claim: Claim) -> None:
        """Ends a flight again after its task. A renewal under way at its end may have restored it.

        A follower that joined meanwhile takes the lead.
        """
        if flight.task is not None and not flight.task.done():
            await asyncio.wait([flight.task])
        with suppress(StoreUnavailable):
            await self.store.end(flight.key, claim.fence, encode(LeaderLeft()))

    async def aclose(self) -> None:
        """Ends all flights, and notifies the followers so that one of them takes the lead at once."""
        flights = list(self._flights.values())
        self._flights.clear()
        await cancel_and_wait([*self._flying, *self._background_tasks])
        for flight in flights:
            await self._conclude(flight, LeaderLeft())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background_tasks.add(task)
        log_failure(task)
        task.add_done_callback(self._background_tasks.discard)


RENEWAL_SECONDS: Final = LEASE_MS / 4000
RECONNECT_SECONDS: Final = 0.25


@asynccontextmanager
async def running_flights(flights: FleetFlights) -> AsyncIterator[FleetFlights]:
    """Receives messages and renews leases while the block runs; then hands led flights over to followers."""
    try:
        async with Background() as background:
            background.start(_follow, flights)
            background.start(_renew_loop, flights)
            yield flights
    finally:
        await flights.aclose()


async def _follow(flights: FleetFlights) -> None:
    while True:
        try:
            async for message in flights.store.messages():
                if message is None:
                    await flights.renew_leases()  # messages before the connection were lost
                else:
                    flights.on_message(message)
        except StoreUnavailable:
            await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _renew_loop(flights: FleetFlights) -> None:
    while True:
        await asyncio.sleep(RENEWAL_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
        await flights.renew_leases()
