"""What the workers of the fleet do for one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from api.model import BackendHealth


class Duty(Protocol):
    """What one worker of the fleet does at a time, for all. Without Redis each worker does it for itself."""

    async def hold(self, seconds: float) -> bool:
        """Whether it is this worker's, now taken or renewed, for so many seconds."""

    async def leave(self) -> None:
        """Leaves it to the others at once."""


class HealthBoard(Protocol):
    """Where the fleet keeps what is known of its backends. Raises `StoreUnavailable`."""

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """Tells the fleet, by the backends' names."""

    async def read(self) -> Mapping[str, BackendHealth]:
        """What was last published and has not expired, without digests."""

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """Tells the fleet which weights the models of a backend have; `publish` does so too, where it answers."""

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]:
        """Which weights the models of a backend have, or had when it last answered; empty where that is not known.

        `early`: the fleet's memory is being made ready, and nobody else is let through yet.
        """
