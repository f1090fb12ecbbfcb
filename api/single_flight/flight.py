"""One flight as one worker has it: its callers, the answer as it grows, and this worker's part in it.

The words of single flight: plain values.

What single flight needs of the fleet's memory. Every method raises `StoreUnavailable` when it is down.

Reads along in a flight that another worker leads.

What goes amiss with flights; a subclass counts.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from api.errors import RagherdError, StoreUnavailable
from api.ports.answer_cache import Claim
from api.single_flight.buffer import Flight
from api.single_flight.wire import LeaderLeft, Said, SourcesMessage, TextMessage, decode
from api.values import CompletedAnswer, FlightKey, StoredElsewhere

LEASE_MS: Final = 5_000
"""How long a leader that is not heard of keeps its lead, and a follower its place."""

KEPT_MS: Final = 10_000
"""How long the words of a flight outlive it, for followers that have not read them."""


class FlightRole(StrEnum):
    """What a worker is to a flight."""

    LEAD = "lead"
    FOLLOW = "follow"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class Joined:
    """`fence` is the leader's; empty where the answer has been stored since it was asked for.

    `place` names a follower's place among the others, as it was last renewed.
    """

    verdict: FlightRole
    fence: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class FlightMessage:
    """What a worker is told: `followed` and `left`, who reads its flight has changed; `more`, there are words."""

    what: str
    flight: str


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a flight's stream: its id there, the fence of who wrote it, and what (see `wire`)."""

    id: str
    fence: str
    body: str


Held = tuple[FlightKey, str, bool]
"""A lead: its key, its fence, and whether it may be taken again where it is gone."""


class FlightStore(Protocol):
    """Flights in Redis. Each call is one atomic step by Redis's clock."""

    def claim(self, key: FlightKey, fence: str) -> Claim:
        """The claim under which the cache stores the leader's answer; no I/O."""

    async def join(self, key: FlightKey, asked_ms: int, not_before_ms: int) -> Joined:
        """The lead if nobody has it, else a place among the followers, taken or renewed.

        A lead requested at `not_before_ms` or earlier is void, and one whose answer was stored at `asked_ms` or later
        has ended; 0 turns the second rule off.
        """

    async def publish(self, key: FlightKey, fence: str, bodies: Sequence[str]) -> int | None:
        """Sends messages to the followers. Gives their number; None if another worker has the lead."""

    async def end(self, key: FlightKey, fence: str, body: str) -> bool:
        """Sends the leader's last message and deletes the flight. False if another worker has the lead."""

    async def abandon(self, key: FlightKey, fence: str) -> int:
        """Ends a flight without followers. Gives the number of followers: above zero, the flight continues."""

    async def leave(self, key: FlightKey, place: str) -> None:
        """Gives up this place, not one taken since, and tells the leader."""

    async def renew_leases(self, leads: Sequence[Held]) -> Mapping[FlightKey, int | None]:
        """Renews leads. Followers of each, None where it is lost; one whose store is down is not among them."""

    async def read(self, key: FlightKey, after: str) -> list[Record]:
        """What was published after an id of the stream; `-` for all."""

    async def exclusive(self, key: FlightKey) -> Claim | None:
        """The lead of what nobody follows; None where another worker has it."""

    async def release(self, claim: Claim) -> None:
        """Gives that lead up."""

    async def renew(self, claim: Claim) -> None:
        """Keeps that lead."""

    def messages(self) -> AsyncIterator[FlightMessage | None]:
        """What is said to this worker; None when it (re)connects. Ends by raising."""


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
        joined: Joined | None = Joined(FlightRole.FOLLOW, self._fence)
        while joined is not None and joined.verdict is FlightRole.FOLLOW and self._flight.buffer.end is None:
            with suppress(StoreUnavailable):
                await self._read()
                if self._flight.buffer.end is None:
                    joined = await self._wait()
                self._reached = time.monotonic()
            if self._out_of_patience() and await self._is_silent():
                joined = None
            elif not self._is_reached():
                await asyncio.sleep(LOOK_SECONDS / 4)
        if joined is not None and joined.verdict is FlightRole.STORED:
            await self._finish_by_the_cache()
        return joined

    async def _is_silent(self) -> bool:
        """Looks once more before the silence is believed: this worker may have been too busy to read what was said."""
        with suppress(StoreUnavailable):
            await self._read()
            self._reached = time.monotonic()
        return self._flight.buffer.end is None and self._out_of_patience()

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
                return Joined(FlightRole.FOLLOW, self._fence)
            except TimeoutError:
                pass
        self._left, self._joined = False, time.monotonic()
        joined = await self._store.join(self._key, self._flight.asked_ms, self._flight.not_before_ms)
        if joined.verdict is FlightRole.FOLLOW:
            self._flight.place = joined.place
            self._follow(joined.fence)
        return joined

    async def _read(self) -> None:
        for record in await self._store.read(self._key, self._last):
            self._last = record.id
            if record.fence >= self._fence and self._flight.buffer.end is None:
                self._follow(record.fence)
                self._take(record)

    def _follow(self, fence: str) -> None:
        """A new leader begins anew."""
        if fence > self._fence:
            self._fence, self._attempt, self._left = fence, 0, False
            self._heard = time.monotonic()
            self._flight.buffer.begin_again()

    def _take(self, record: Record) -> None:
        said = _said(record)
        if isinstance(said, TextMessage):
            self._add(said)
        elif isinstance(said, SourcesMessage):
            self._begin(said.attempt)
            if said.attempt == self._attempt and self._flight.buffer.sources is None:
                self._flight.buffer.ground_in(said.sources)
        elif isinstance(said, LeaderLeft):
            self._left = True
        elif said is not None:
            self._flight.buffer.finish(said)

    def _add(self, piece: TextMessage) -> None:
        """What is known already is left out; after a gap, the end will have it all."""
        buffer = self._flight.buffer
        self._begin(piece.attempt)
        known = buffer.length
        if piece.attempt == self._attempt and piece.at <= known < piece.at + len(piece.text):
            buffer.append(piece.text[known - piece.at :])

    def _begin(self, attempt: int) -> None:
        """A later attempt makes what was read void."""
        self._heard = time.monotonic()
        if attempt > self._attempt:
            self._attempt = attempt
            self._flight.buffer.begin_again()

    async def _finish_by_the_cache(self) -> None:
        """The leader has ended and stored its answer: its last word may still be there, else the cache has it."""
        with suppress(StoreUnavailable):
            await self._read()
        self._flight.buffer.finish(StoredElsewhere())


def _said(record: Record) -> Said | None:
    try:
        said = decode(record.body)
    except (ValueError, KeyError, TypeError):
        return None  # of a version that says more than this one understands: the end will come, or the lease will end
    assert isinstance(said, TextMessage | SourcesMessage | CompletedAnswer | RagherdError | LeaderLeft)
    return said
