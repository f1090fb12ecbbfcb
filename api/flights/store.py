"""What single flight needs of the fleet's memory. Every method raises `StoreUnavailable` when it is down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from api.flights.state import Joined, Message, Record
from api.model import FlightKey
from api.ports.answers import Claim

Held = tuple[FlightKey, str, bool]
"""A lead: its key, its fence, and whether it may be taken again where it is gone."""


class FlightStore(Protocol):
    """Flights in the memory of the fleet. Each call is one atomic step by the store's own clock."""

    def claim(self, key: FlightKey, fence: str) -> Claim:
        """The lead as the cache asks for it; no I/O."""

    async def join(self, key: FlightKey, asked_ms: int, not_before_ms: int) -> Joined:
        """The lead where nobody has it, else a place among the followers, now taken or renewed.

        A lead that was asked for at `not_before_ms` or earlier is nobody's. Neither where the answer was stored at
        `asked_ms` or later; 0 leaves that out.
        """

    async def publish(self, key: FlightKey, fence: str, bodies: Sequence[str]) -> int | None:
        """Tells the followers. Gives their number; None when the lead is another's."""

    async def end(self, key: FlightKey, fence: str, body: str) -> bool:
        """The leader's last word; the flight is gone. False when the lead was another's."""

    async def abandon(self, key: FlightKey, fence: str) -> int:
        """Ends a flight that nobody follows. Gives the number of followers: above zero, it goes on."""

    async def leave(self, key: FlightKey, place: str) -> None:
        """Follows no more: gives up this place, not one that was taken since. The leader is told."""

    async def tend(self, leads: Sequence[Held]) -> Mapping[FlightKey, int | None]:
        """Renews leads. Followers of each, None where it is lost; one whose store is down is not among them."""

    async def read(self, key: FlightKey, after: str) -> list[Record]:
        """What was published after an id of the stream; `-` for all."""

    async def sole(self, key: FlightKey) -> Claim | None:
        """The lead of what nobody follows; None where another worker has it."""

    async def release(self, claim: Claim) -> None:
        """Gives that lead up."""

    async def renew(self, claim: Claim) -> None:
        """Keeps that lead."""

    def messages(self) -> AsyncIterator[Message | None]:
        """What is said to this worker; None when it (re)connects. Ends by raising."""
