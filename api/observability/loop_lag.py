"""How late the event loop comes to what is due: a worker that is late answers nobody, health checks included."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

TICK: Final = 0.1
"""Seconds between two looks. A block of T seconds is seen as between T - 0.1 and T; shorter ones are sampled."""


class LagMetrics(Protocol):
    """Who counts it."""

    def loop_was_late(self, seconds: float) -> None: ...


class LoopLag:
    """Of the worker's event loop."""

    def __init__(self, metrics: LagMetrics) -> None:
        self._metrics = metrics

    async def keep_measuring(self) -> None:
        """Observes the lag for ever. A task of the worker's."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._metrics.loop_was_late(max(0.0, loop.time() - due))
