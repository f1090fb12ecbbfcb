"""Keeps a worker's part of the bulkhead alive: messages that wake, leases renewed, a slow jittered look behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api.background import Background
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.errors import StoreUnavailable

TEND_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 0.25


@asynccontextmanager
async def kept_alive(bulkhead: FleetBulkhead) -> AsyncIterator[FleetBulkhead]:
    """The bulkhead, followed and tended while the block runs; what is on its way back is sent at the end."""
    try:
        async with Background() as background:
            background.start(_follow, bulkhead)
            background.start(_tend, bulkhead)
            yield bulkhead
    finally:
        await bulkhead.aclose()


async def _follow(bulkhead: FleetBulkhead) -> None:
    while True:
        try:
            async for wake in bulkhead.store.follow():
                if wake is None:
                    await bulkhead.tend()  # what was said before nobody heard
                else:
                    bulkhead.woken(wake)
        except StoreUnavailable:
            await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _tend(bulkhead: FleetBulkhead) -> None:
    every = min(TEND_SECONDS, bulkhead.policy.lease_ms / 4000)
    while True:
        await asyncio.sleep(every * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        await bulkhead.tend()
