"""Single flight's values, the protocol of its store in Redis, and following a flight that another worker leads.

Every method of the store raises `StoreUnavailable` if Redis cannot be used.
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

from api.errors import RagherdError, StoreUnavailable, Undecryptable
from api.ports.answer_cache import Claim
from api.single_flight.buffer import Flight
from api.single_flight.wire import FlightPayload, LeaderLeft, SourcesMessage, TextMessage, decode
from api.values import CompletedAnswer, FlightKey, Priority, Queued, StoredElsewhere

LEASE_MS: Final = 5_000
"""Lease of a leader and of a follower's place, in milliseconds."""

KEPT_MS: Final = 10_000
"""Milliseconds that a flight's stream remains after its end, for followers that have not read it."""


class FlightRole(StrEnum):
    """The role of a worker in a flight."""

    LEAD = "lead"
    FOLLOW = "follow"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class Joined:
    """The result of joining. `fence` is the leader's; empty if the answer has been stored meanwhile.

    `place` names a follower's place among the others, as last renewed.
    """

    role: FlightRole
    fence: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class FlightMessage:
    """A message to a worker. `followed`, `left`: the followers of its flight changed; `promoted`: a user follows a
    batch flight; `more`: there is new text.
    """

    what: str
    flight: str


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a flight's stream: its id, the fence of its writer, and the encoded payload (see `wire`)."""

    id: str
    fence: str
    body: str


RenewableClaim = tuple[FlightKey, str, bool]
"""A lead: its key, its fence, and whether it may be claimed again if it has expired."""


class FlightStore(Protocol):
    """Flights in Redis. Each call is one atomic step by Redis's clock."""

    def claim(self, key: FlightKey, fence: str) -> Claim:
        """Returns the claim with which the cache stores the leader's answer; no I/O."""

    async def join(
        self, key: FlightKey, asked_ms: int, not_before_ms: int, priority: Priority = Priority.USER
    ) -> Joined:
        """Takes the lead if nobody has it; otherwise takes or renews a place among the followers.

        A user who follows a batch flight promotes it.

        A lead requested at `not_before_ms` or earlier is void, and one whose answer was stored at `asked_ms` or later
        has ended; 0 turns the second rule off.
        """

    async def publish(self, key: FlightKey, fence: str, bodies: Sequence[str]) -> int | None:
        """Sends messages to the followers. Returns their number; None if another worker has the lead."""

    async def end(self, key: FlightKey, fence: str, body: str) -> bool:
        """Sends the leader's last message and deletes the flight. False if another worker has the lead."""

    async def abandon(self, key: FlightKey, fence: str) -> int:
        """Ends a flight without followers. Returns the number of followers: above zero, the flight continues."""

    async def leave(self, key: FlightKey, place: str) -> None:
        """Gives up this place, but not one taken since, and notifies the leader."""

    async def renew_leases(self, leads: Sequence[RenewableClaim]) -> Mapping[FlightKey, int | None]:
        """Renews leads. Returns each one's number of followers, None if it is lost; omits those whose shard is down."""

    async def read(self, key: FlightKey, after: str) -> list[Record]:
        """Returns the records after an id of the stream; `-` for all."""

    async def exclusive(self, key: FlightKey) -> Claim | None:
        """Takes the lead of work without followers; None if another worker has it."""

    async def release(self, claim: Claim) -> None:
        """Releases an exclusive lead."""

    async def renew(self, claim: Claim) -> None:
        """Renews an exclusive lead."""

    def messages(self) -> AsyncIterator[FlightMessage | None]:
        """Yields the messages to this worker; None after it (re)connects. Ends by raising."""


LOOK_SECONDS: Final = 1.0
"""Seconds between a follower's polls, with jitter. A poll renews its place and detects a dead leader."""

LOST_SECONDS: Final = 1.0
"""Seconds that a follower waits for Redis during an outage."""


class FollowingFlight:
    """Follows a flight that another worker leads. `patience`: seconds that the leader may stay silent."""

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
        """Reads until the answer is complete or this worker gets the lead, and returns the last `Joined`.

        Returns None if this worker must generate alone: the leader or Redis has been silent for too long, or the
        leader encrypts with a key that this worker lacks.
        """
        joined: Joined | None = Joined(FlightRole.FOLLOW, self._fence)
        while joined is not None and joined.role is FlightRole.FOLLOW and self._flight.buffer.end is None:
            try:
                await self._read()
                if self._flight.buffer.end is None:
                    joined = await self._wait()
                self._reached = time.monotonic()
            except Undecryptable:
                return None
            except StoreUnavailable:
                pass
            if self._out_of_patience() and await self._is_silent():
                joined = None
            elif not self._is_reached():
                await asyncio.sleep(LOOK_SECONDS / 4)
        if joined is not None and joined.role is FlightRole.STORED:
            await self._finish_by_the_cache()
        return joined

    async def _is_silent(self) -> bool:
        """Reads once more and returns whether the leader is silent; this worker may have been too busy to read."""
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
        """Waits for the leader. Joins again from time to time, and when the leader leaves, to renew the place."""
        if not self._left and time.monotonic() - self._joined < LOOK_SECONDS:
            try:
                async with asyncio.timeout(LOOK_SECONDS * random.uniform(0.7, 1.3)):  # noqa: S311 - jitter
                    await self._flight.woken.wait()
                self._flight.woken.clear()
                return Joined(FlightRole.FOLLOW, self._fence)
            except TimeoutError:
                pass
        self._left, self._joined = False, time.monotonic()
        joined = await self._store.join(*self._flight.joining)
        if joined.role is FlightRole.FOLLOW:
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
        """Restarts the answer if there is a new leader."""
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
        elif isinstance(said, Queued):
            self._heard = time.monotonic()
            self._flight.buffer.place.move(said.position, said.seconds)
        elif isinstance(said, LeaderLeft):
            self._left = True
        elif said is not None:
            self._flight.buffer.finish(said)

    def _add(self, piece: TextMessage) -> None:
        """Appends new text. After a gap it appends nothing; the end contains the whole answer."""
        buffer = self._flight.buffer
        self._begin(piece.attempt)
        known = buffer.length
        if piece.attempt == self._attempt and piece.at <= known < piece.at + len(piece.text):
            buffer.append(piece.text[known - piece.at :])

    def _begin(self, attempt: int) -> None:
        """Discards the text read so far if a later attempt has begun."""
        self._heard = time.monotonic()
        if attempt > self._attempt:
            self._attempt = attempt
            self._flight.buffer.begin_again()

    async def _finish_by_the_cache(self) -> None:
        """Ends after the leader has stored its answer: its last record may still be there, else the cache has it."""
        with suppress(StoreUnavailable):
            await self._read()
        self._flight.buffer.finish(StoredElsewhere())


def _said(record: Record) -> FlightPayload | None:
    try:
        said = decode(record.body)
    except (ValueError, KeyError, TypeError):
        return None  # written by a newer version; the end will come, or the lease will expire
    assert isinstance(said, TextMessage | SourcesMessage | Queued | CompletedAnswer | RagherdError | LeaderLeft)
    return said
