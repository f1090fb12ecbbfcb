"""Keeps a worker's flights in step with the fleet: messages that wake, leases renewed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api.background import Background
from api.errors import StoreUnavailable
from api.flights.fleet_flights import Flights
from api.flights.state import LEASE_MS

TEND_SECONDS: Final = LEASE_MS / 4000
RECONNECT_SECONDS: Final = 0.25


@asynccontextmanager
async def kept_in_step(flights: Flights) -> AsyncIterator[Flights]:
    """The flights, followed and tended while the block runs; at the end, led flights are left to others."""
    try:
        async with Background() as background:
            background.start(_follow, flights)
            background.start(_tend, flights)
            yield flights
    finally:
        await flights.aclose()


async def _follow(flights: Flights) -> None:
    while True:
        try:
            async for message in flights.store.messages():
                if message is None:
                    await flights.tend()  # what was said before nobody heard
                else:
                    flights.told(message)
        except StoreUnavailable:
            await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _tend(flights: Flights) -> None:
    while True:
        await asyncio.sleep(TEND_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
        await flights.tend()
