"""Waits for conditions, never for a fixed time: helpers for tests of other processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


def wait_until(condition: Callable[[], object], timeout: float = 10.0, interval: float = 0.02) -> None:
    """Returns as soon as `condition()` is true. Fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {condition}"
        time.sleep(interval)


async def wait_until_async(
    condition: Callable[[], Awaitable[object]], timeout: float = 10.0, interval: float = 0.02
) -> None:
    """The same for an asynchronous condition, without blocking the event loop."""
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {condition}"
        await asyncio.sleep(interval)


async def deaf(times: int) -> None:
    """Waits forever and ignores this many cancellations, like `asyncio.wait_for` of Python 3.11 may."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


async def eventually(condition: Callable[[], object]) -> None:
    """Waits for a plain condition without blocking the event loop."""

    async def met() -> object:
        return condition()

    await wait_until_async(met)
