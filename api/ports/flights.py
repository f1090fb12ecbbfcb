"""Single flight, as the flow sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from api.model import FlightKey, Grounded, Landed, Restart, StoredElsewhere, Token
from api.ports.answers import Claim

Lead = Callable[[Claim | None], AbstractAsyncContextManager[AsyncIterator[Grounded | Token | Restart | Landed]]]
"""Generates an answer, and stores it under the claim where there is one."""


class Seat(Protocol):
    """A caller's place in a flight: gives `Grounded`, `Token`s and `Landed`, or `StoredElsewhere`.

    A cancelled `anext` loses nothing. Raises what ended the answer, wherever it was generated.
    """

    @property
    def led(self) -> bool:
        """Whether it was generated because this caller asked; known with the first event."""

    async def __anext__(self) -> Grounded | Token | Landed | StoredElsewhere: ...


class Flights(Protocol):
    """Single flight: equal questions in flight are generated once over the fleet; without Redis, once a worker."""

    def join(
        self, key: FlightKey, lead: Lead, *, asked_ms: int, whole: bool, not_before_ms: int = 0
    ) -> AbstractAsyncContextManager[Seat]:
        """A seat. `lead` is called where this worker has to generate; who leaves last ends that.

        `asked_ms`: when the cache was asked in vain, by Redis's clock. `not_before_ms`: when
        such answers were last deleted; one asked for before is not shared. `whole`: this caller wants no tokens.
        """

    def sole(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """The lead of work on `key` that nobody waits for; None where another worker has it, or Redis is down."""
