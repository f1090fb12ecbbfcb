"""One flight as one worker has it: its callers, the answer as it grows, and this worker's part in it."""

from __future__ import annotations

import asyncio
import time

from api.flights.progress import Progress, Reader
from api.model import FlightKey, Grounded, Landed, StoredElsewhere, Token
from api.ports.answers import Claim
from api.ports.flights import Lead


class Flight:
    """`leads`: this worker generates. `claim` is its lead in Redis, None while it has none there.

    `place` is its place among the followers where another worker leads. `ending`: it is being found out whether
    anybody waits for it.
    """

    def __init__(self, key: FlightKey, generate: Lead, asked_ms: int, not_before_ms: int) -> None:
        self.key = key
        self.generate = generate
        self.asked_ms = asked_ms
        self.not_before_ms = not_before_ms
        self.progress = Progress()
        self.seats = 0
        self.leads = False
        self.claim: Claim | None = None
        self.place = ""
        self.ending = False
        self.renewed = time.monotonic()
        self.decided = asyncio.Event()
        self.woken = asyncio.Event()
        self.is_published = False
        self.task: asyncio.Task[None] | None = None

    def lead(self, claim: Claim | None) -> None:
        """This worker generates from now on."""
        self.leads, self.claim = True, claim
        self.renewed = time.monotonic()
        self.decided.set()

    def follow(self, place: str) -> None:
        """Another worker does. `place` is where this one stands."""
        self.place = place
        self.decided.set()


class FlightSeat:
    """See `ports.Seat`."""

    def __init__(self, flight: Flight, reader: Reader, *, first: bool) -> None:
        self._flight = flight
        self._reader = reader
        self._first = first

    @property
    def led(self) -> bool:
        """See `ports.Seat`."""
        return self._first and self._flight.leads

    def __aiter__(self) -> FlightSeat:
        return self

    async def __anext__(self) -> Grounded | Token | Landed | StoredElsewhere:
        return await anext(self._reader)
