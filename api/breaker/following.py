"""Keeps a worker's view of the breaker current: pushed by the log of transitions, and a jittered poll behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.background import Background
from api.breaker.fleet_breaker import FleetBreaker
from api.errors import StoreUnavailable

POLL_SECONDS = 1.0
RECONNECT_SECONDS = 0.25


@asynccontextmanager
async def kept_current(breaker: FleetBreaker) -> AsyncIterator[FleetBreaker]:
    """The breaker, followed and polled while the block runs; what is unreported is sent at the end."""
    listening = asyncio.Event()
    try:
        async with Background() as background:
            background.start(_follow, breaker, listening)
            background.start(_poll, breaker)
            await listening.wait()  # whoever asks now hears of every transition from here on
            await breaker.refresh()
            yield breaker
    finally:
        await breaker.aclose()


async def _follow(breaker: FleetBreaker, listening: asyncio.Event) -> None:
    while True:
        try:
            async for transitions in breaker.store.follow():
                listening.set()
                await breaker.refresh()
                for transition in transitions:
                    breaker.announce(transition)
        except StoreUnavailable:
            pass
        finally:
            listening.set()
        await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _poll(breaker: FleetBreaker) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        await breaker.refresh()
