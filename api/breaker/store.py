"""What the fleet's breaker needs of its shared store. Every method raises `StoreUnavailable` when it is down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from api.breaker.state import Admission, Outcome, Position, Reading, Recorded, Transition

Override = Literal["OPEN", "CLOSED", "RESET"]


class BreakerStore(Protocol):
    """One breaker in the memory of the fleet. Each call is one atomic step by the store's own clock."""

    async def admit(self, token: str) -> Admission:
        """Asks for admission; a probe's permit is held under `token`."""

    async def record(self, epoch: int, token: str, outcomes: list[Outcome], rejected: int) -> Recorded:
        """Reports results, oldest first, of calls admitted in `epoch`. `token` is empty but for a probe.

        Writes even when there is nothing to report, so that an empty report tells whether the store takes writes.
        """

    async def renew(self, token: str) -> bool:
        """Renews a probe's lease; False when the permit is no longer its own."""

    async def read(self) -> Reading:
        """The whole breaker at one moment."""

    async def override(self, action: Override, by: str) -> Position:
        """An operator's override, or its end."""

    async def history(self, limit: int, since_ms: int = 0) -> list[Transition]:
        """Transitions, newest first."""

    def follow(self) -> AsyncIterator[list[Transition]]:
        """Transitions as they happen, oldest first; an empty list when it (re)connects. Ends by raising."""
