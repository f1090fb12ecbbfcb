"""A worker's server while it starts, without a master."""

from __future__ import annotations

import asyncio
import itertools
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uvicorn.config import Config

from api.observability.metrics import Metrics
from worker_config import draining_server
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


async def test_heartbeats_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    beats = 0

    async def heartbeat() -> None:
        nonlocal beats
        beats += 1

    monkeypatch.setattr(draining_server, "HEARTBEAT_SECONDS", 0.0)
    hours = itertools.count(500_000, -1)
    monkeypatch.setattr("uvicorn.server.time.time", lambda: next(hours) * 3600.0)
    app, metrics = ClosingApp(None), cast(Any, Metrics())
    config, guard = (
        Config(app, log_config=None, callback_notify=heartbeat),
        ConnectionGuard(ConnectionLimits(), metrics),
    )
    config.load()
    server = DrainingServer(config, app, None, WorkerFlags(), DrainTimes(), sys.maxsize, guard, heartbeat)
    for tick in range(0, 50, 10):
        await server.on_tick(tick)
    assert beats == 5, "uvicorn sends no others"


@pytest.mark.parametrize(("drain_delay", "quiet"), [(0, 2), (1, 2), (3, 4), (5, 6), (60, 6)])
def test_a_connection_is_closed_when_its_client_would_not_use_it_again(drain_delay: float, quiet: float) -> None:
    assert DrainTimes(drain_delay=drain_delay).quiet == quiet
