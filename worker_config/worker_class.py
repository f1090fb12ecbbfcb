"""The worker that gunicorn makes: uvicorn on uvloop and httptools, in `DrainingServer`."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any

import uvloop
from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from worker_config.closing_app import ClosingApp
from worker_config.connection_guard import ConnectionGuard
from worker_config.connection_table import ConnectionLimits
from worker_config.draining_server import DrainingServer, Leave
from worker_config.timed_connections import TimedProtocol
from worker_config.worker_board import WorkerBoard


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # untyped library
    """What `worker_class` names. `post_fork` sets `leave` and `limits` from the settings."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - the base class's name and kind
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
    }
    leave = Leave()
    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """In the master, before the fork: the board is then both's."""
        super().__init__(*arguments, **named)
        self.board = WorkerBoard()
        self.config.limit_max_requests = None  # at which uvicorn would leave by itself, without a successor

    def run(self) -> None:
        """Serves until a signal. A start that fails ends with gunicorn's code for that."""
        app = ClosingApp(self.wsgi)
        self.config.app = app
        state = self.wsgi.state
        state.draining = False
        guard = ConnectionGuard(self.limits, state.metrics)
        self.config.http = partial(TimedProtocol, guard=guard)
        server = DrainingServer(
            self.config, app, state, self.board, self.leave, self.max_requests, guard, self.callback_notify
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                # The sockets inside gunicorn's wrappers, which uvloop would close behind their back.
                runner.run(server.serve(sockets=[listener.sock for listener in self.sockets]))
            except asyncio.CancelledError:
                return  # a signal during the start
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
