"""What the fleet's bulkhead needs of its shared store. Every method raises `StoreUnavailable` when it is down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from api.bulkhead.state import Reading, Return, Taken, Wake
from api.bulkhead.ticket import Priority


class BulkheadStore(Protocol):
    """One bulkhead in the memory of the fleet. Each call is one atomic step by the store's own clock."""

    async def take(self, priority: Priority, tenant: str) -> Taken:
        """A permit, a place in line, or neither."""

    async def give(self, returns: Sequence[Return]) -> list[str]:
        """Permits and places in line go back. Gives the tickets that hold a permit from now on, of any worker."""

    async def tend(self, held: Iterable[str], waiting: Iterable[str]) -> list[str]:
        """Renews the leases of a worker's tickets, and hands out what ended leases left. Gives who is granted."""

    async def read(self) -> Reading:
        """The whole bulkhead at one moment."""

    def follow(self) -> AsyncIterator[Wake | None]:
        """What happens to this worker's tickets in line; None when it (re)connects. Ends by raising."""
