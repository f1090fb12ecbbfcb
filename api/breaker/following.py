"""Keeps a worker's view of the breaker current: pushed by the log of transitions, and a jittered poll behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from api.background import cancelled
from api.breaker.fleet_breaker import FleetBreaker
from api.errors import StoreUnavailable

POLL_SECONDS = 1.0
RECONNECT_SECONDS = 0.25

_log = structlog.get_logger("ragherd.breaker")


@asynccontextmanager
async def kept_current(breaker: FleetBreaker) -> AsyncIterator[FleetBreaker]:
    """The breaker, followed and polled while the block runs; what is unreported is sent at the end."""
    listening = asyncio.Event()
    tasks = [asyncio.create_task(loop, name="breaker") for loop in (_follow(breaker, listening), _poll(breaker))]
    try:
        await listening.wait()  # whoever asks now hears of every transition from here on
        await breaker.refresh()
        yield breaker
    finally:
        await cancelled(tasks)
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
        except Exception:  # noqa: BLE001 - a worker that no longer follows would be blind, and nobody would know
            _log.exception("breaker_follow_failed", breaker=breaker.name)
        listening.set()
        await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _poll(breaker: FleetBreaker) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        try:
            await breaker.refresh()
        except Exception:  # noqa: BLE001 - as above
            _log.exception("breaker_poll_failed", breaker=breaker.name)
