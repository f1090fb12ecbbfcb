"""Keeps a worker's view of the breaker current: pushed by the log of transitions, and a jittered poll behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.breaker.fleet_breaker import FleetBreaker
from api.errors import StoreUnavailable

POLL_SECONDS = 1.0
RECONNECT_SECONDS = 0.25


@asynccontextmanager
async def kept_current(breaker: FleetBreaker) -> AsyncIterator[FleetBreaker]:
    """The breaker, followed and polled while the block runs; what is unreported is sent at the end."""
    await breaker.refresh()
    tasks = [asyncio.create_task(loop(breaker), name=f"breaker-{loop.__name__}") for loop in (_follow, _poll)]
    try:
        yield breaker
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await breaker.aclose()


async def _follow(breaker: FleetBreaker) -> None:
    while True:
        try:
            async for transitions in breaker.store.follow():
                await breaker.refresh()
                for transition in transitions:
                    breaker.announce(transition)
        except StoreUnavailable:
            await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _poll(breaker: FleetBreaker) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        await breaker.refresh()
