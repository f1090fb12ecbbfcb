"""A worker's server while it starts, without a master."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.config import Config

from api.observability.metrics import Metrics
from worker_config.connection_guard import ConnectionGuard, ConnectionLimits
from worker_config.draining_server import ClosingApp, DrainingServer, DrainTimes
from worker_config.rolling_arbiter import WorkerFlags


async def test_a_slowly_starting_worker_sends_heartbeats_to_the_master() -> None:
    lives, board = asyncio.Event(), WorkerFlags()

    async def starts_once_it_was_seen_to_live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await lives.wait()
        assert not board.ready
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def heartbeat() -> None:
        lives.set()

    app = ClosingApp(starts_once_it_was_seen_to_live)
    config = Config(app, lifespan="on", port=0, log_config=None)
    state = SimpleNamespace(draining=False)
    metrics: Any = Metrics()  # it takes the reasons that exist, not any text
    guard = ConnectionGuard(ConnectionLimits(), metrics)
    server = DrainingServer(config, app, state, board, DrainTimes(), sys.maxsize, guard, heartbeat)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        await lives.wait()
        while not board.ready:
            await asyncio.sleep(0)
    server.should_exit = True
    await serving


@pytest.mark.parametrize(("drain_delay", "quiet"), [(0, 2), (1, 2), (3, 4), (5, 6), (60, 6)])
def test_a_connection_is_closed_when_its_client_would_not_use_it_again(drain_delay: float, quiet: float) -> None:
    assert DrainTimes(drain_delay=drain_delay).quiet == quiet
