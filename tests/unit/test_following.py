"""An unexpected error ends neither the followers of the fleet nor the renewal of leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from api import cancellation as background
from api.bulkhead.bulkhead_rules import AcquireResult, BulkheadPolicy, RenewedLeases, Taken
from api.bulkhead.fleet_bulkhead import FleetBulkhead, kept_alive
from api.errors import Undecryptable
from api.single_flight import fleet_flights as flights_following
from api.single_flight.fleet_flights import FleetFlights, running_flights
from api.single_flight.flight import FlightRole, FollowingFlight, Joined
from tests.support.waiting import wait_until_async


class FaultyStore:
    """Replaces the stores of bulkheads and flights. Following and renewing fail once each, then work."""

    def __init__(self) -> None:
        self.begun = {"follow": 0, "tend": 0}
        self.renewed: Any = {}

    def _begin(self, what: str) -> None:
        self.begun[what] += 1
        if self.begun[what] == 1:
            raise KeyError(what)

    async def follow(self) -> AsyncIterator[None]:
        self._begin("follow")
        yield None
        await asyncio.Event().wait()

    messages = follow

    async def renew_leases(self, *held: Any) -> Any:
        self._begin("tend")
        return self.renewed

    async def take(self, *who: str, queues: bool = True) -> Taken:
        return Taken(AcquireResult.GRANTED, "user acme 1 w 1")

    async def give(self, returns: Sequence[Any]) -> list[str]:
        return []

    async def goes_on(self) -> bool:
        """Waits until both have succeeded repeatedly."""
        return self.begun["follow"] > 1 and self.begun["tend"] > 3


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(flights_following, "RENEWAL_SECONDS", 0.01)


async def test_of_a_bulkhead() -> None:
    store: Any = FaultyStore()
    store.renewed = RenewedLeases()
    bulkhead = FleetBulkhead("ollama", BulkheadPolicy(lease_ms=40), store, "w")
    async with kept_alive(bulkhead), bulkhead.permit("acme"):
        await wait_until_async(store.goes_on)


async def test_of_flights() -> None:
    store: Any = FaultyStore()
    async with running_flights(FleetFlights(store, 1.0)):
        await wait_until_async(store.goes_on)


class SealedStore:
    """A store with words that this worker cannot decrypt."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self, key: object, after: str) -> list[Any]:
        self.reads += 1
        raise Undecryptable("old", is_known=False)

    async def join(self, *asked: Any) -> Joined:
        return Joined(FlightRole.FOLLOW, "fence", "place")


async def test_who_cannot_decrypt_the_leaders_words_generates_at_once() -> None:
    store: Any = SealedStore()
    flight: Any = SimpleNamespace(key=None, joining=(), buffer=SimpleNamespace(end=None), woken=asyncio.Event())
    assert await FollowingFlight(flight, store, "fence", 30.0).read_along() is None
    assert store.reads == 1
