"""Reads along in a flight that another worker leads."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Final

from api.errors import RagherdError, StoreUnavailable
from api.flights.flight import Flight
from api.flights.state import Joined, Record, Verdict
from api.flights.store import FlightStore
from api.flights.wire import GroundedIn, HandedOver, Piece, Said, decode
from api.model import FlightKey, Landed, StoredElsewhere

LOOK_SECONDS: Final = 1.0
"""How often a follower looks by itself, jittered: its place is renewed, and a leader that died is found out."""

LOST_SECONDS: Final = 1.0
"""How long a follower waits for a Redis that is lost."""


class FollowingFlight:
    """`patience`: the seconds that the leader may say nothing."""

    def __init__(self, flight: Flight, store: FlightStore, fence: str, patience: float) -> None:
        self._flight = flight
        self._store = store
        self._fence = fence
        self._patience = patience
        self._attempt = 0
        self._last = "-"
        self._left = False
        self._heard = self._reached = self._joined = time.monotonic()

    @property
    def _key(self) -> FlightKey:
        return self._flight.key

    async def read_along(self) -> Joined | None:
        """Until the answer is there, and `Joined` with the lead is given where that fell to this worker.

        None: it is to generate alone, since the leader, or Redis, has been silent for too long.
        """
        joined: Joined | None = Joined(Verdict.FOLLOW, self._fence)
        while joined is not None and joined.verdict is Verdict.FOLLOW and self._flight.progress.end is None:
            with suppress(StoreUnavailable):
                await self._read()
                if self._flight.progress.end is None:
                    joined = await self._wait()
                self._reached = time.monotonic()
            if self._out_of_patience() and await self._is_silent():
                joined = None
            elif not self._is_reached():
                await asyncio.sleep(LOOK_SECONDS / 4)
        if joined is not None and joined.verdict is Verdict.STORED:
            await self._finish_by_the_cache()
        return joined

    async def _is_silent(self) -> bool:
        """Looks once more before the silence is believed: this worker may have been too busy to read what was said."""
        with suppress(StoreUnavailable):
            await self._read()
            self._reached = time.monotonic()
        return self._flight.progress.end is None and self._out_of_patience()

    def _out_of_patience(self) -> bool:
        now = time.monotonic()
        return now - self._heard > self._patience or now - self._reached > LOST_SECONDS + 2 * LOOK_SECONDS

    def _is_reached(self) -> bool:
        return time.monotonic() - self._reached < LOOK_SECONDS / 4

    async def _wait(self) -> Joined:
        """For a word of the leader. Now and then, and when it leaves, looks who leads, which keeps the place."""
        if not self._left and time.monotonic() - self._joined < LOOK_SECONDS:
            try:
                async with asyncio.timeout(LOOK_SECONDS * random.uniform(0.7, 1.3)):  # noqa: S311 - jitter
                    await self._flight.woken.wait()
                self._flight.woken.clear()
                return Joined(Verdict.FOLLOW, self._fence)
            except TimeoutError:
                pass
        self._left, self._joined = False, time.monotonic()
        joined = await self._store.join(self._key, self._flight.asked_ms, self._flight.not_before_ms)
        if joined.verdict is Verdict.FOLLOW:
            self._flight.place = joined.place
            self._follow(joined.fence)
        return joined

    async def _read(self) -> None:
        for record in await self._store.read(self._key, self._last):
            self._last = record.id
            if record.fence >= self._fence and self._flight.progress.end is None:
                self._follow(record.fence)
                self._take(record)

    def _follow(self, fence: str) -> None:
        """A new leader begins anew."""
        if fence > self._fence:
            self._fence, self._attempt, self._left = fence, 0, False
            self._heard = time.monotonic()
            self._flight.progress.restart()

    def _take(self, record: Record) -> None:
        said = _said(record)
        if isinstance(said, Piece):
            self._add(said)
        elif isinstance(said, GroundedIn):
            self._begin(said.attempt)
            if said.attempt == self._attempt and self._flight.progress.sources is None:
                self._flight.progress.ground(said.sources)
        elif isinstance(said, HandedOver):
            self._left = True
        elif said is not None:
            self._flight.progress.finish(said)

    def _add(self, piece: Piece) -> None:
        """What is known already is left out; after a gap, the end will have it all."""
        progress = self._flight.progress
        self._begin(piece.attempt)
        known = progress.length
        if piece.attempt == self._attempt and piece.at <= known < piece.at + len(piece.text):
            progress.add(piece.text[known - piece.at :])

    def _begin(self, attempt: int) -> None:
        """A later attempt makes what was read void."""
        self._heard = time.monotonic()
        if attempt > self._attempt:
            self._attempt = attempt
            self._flight.progress.restart()

    async def _finish_by_the_cache(self) -> None:
        """The leader has ended and stored its answer: its last word may still be there, else the cache has it."""
        with suppress(StoreUnavailable):
            await self._read()
        self._flight.progress.finish(StoredElsewhere())


def _said(record: Record) -> Said | None:
    try:
        said = decode(record.body)
    except (ValueError, KeyError, TypeError):
        return None  # of a version that says more than this one understands: the end will come, or the lease will end
    assert isinstance(said, Piece | GroundedIn | Landed | RagherdError | HandedOver)
    return said
