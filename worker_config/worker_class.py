"""The worker: uvicorn on uvloop and httptools, leaving in an orderly way.

SIGTERM begins a drain: `app.state.draining` is set, so that /health/ready says 503, while the socket still accepts for
`drain_delay` seconds and load balancers turn away; then uvicorn closes the socket and waits `graceful_timeout` for
what is in flight. SIGINT and SIGQUIT end it at once. Either way the lifespan closes what it opened.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import uvloop
from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

ABORT_TIMEOUT = 0.5
"""Seconds that cancelled requests have to end."""
HEARTBEAT = 5.0
"""Seconds between two signs of life to the master while requests in flight end."""


class DrainingServer(Server):
    """uvicorn's server with the signals as the module says."""

    def __init__(self, config: Config, app: Any, drain_delay: float, heartbeat: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._state = app.state
        self._drain_delay = drain_delay
        self._heartbeat = heartbeat
        self._serving: asyncio.Task[Any] | None = None
        self._log = logging.getLogger("worker_config.worker")

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles signals on the event loop while it serves. None is raised again at the end: the exit code is 0."""
        self._serving = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self.abort)
        yield

    def drain(self) -> None:
        """Says that it is leaving, and leaves after the delay."""
        if not self.started:
            self._give_up_starting()
        elif not self._state.draining:
            self._state.draining = True
            self._log.info("Draining: leaving in %s s", self._drain_delay)
            asyncio.get_running_loop().call_later(self._drain_delay, self._leave)

    def abort(self) -> None:
        """Leaves now: requests in flight are cancelled."""
        if not self.started:
            self._give_up_starting()
            return
        self._state.draining = True
        self.config.timeout_graceful_shutdown = ABORT_TIMEOUT  # type: ignore[assignment]  # any number of seconds does
        for task in self.server_state.tasks:
            task.cancel()
        self._leave()

    def _leave(self) -> None:
        self.should_exit = True

    def _give_up_starting(self) -> None:
        """Nobody is served yet: nothing is to be waited for."""
        self.should_exit = True
        self._log.info("Leaving before the start is complete")
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it calls the cancelled lifespan an error
        if self._serving is not None:
            self._serving.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; it alone would give no sign of life meanwhile, and the master would kill it."""
        living = asyncio.create_task(self._keep_living())
        try:
            await super().shutdown(sockets)
        finally:
            living.cancel()

    async def _keep_living(self) -> None:
        while True:
            await self._heartbeat()
            await asyncio.sleep(HEARTBEAT)


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # untyped library
    """What `worker_class` names. `post_fork` sets the two figures from the settings."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - the base class's name and kind
        "loop": "uvloop",
        "http": "httptools",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
    }
    drain_delay = 0.0
    graceful_timeout = 30.0

    def run(self) -> None:
        """Serves until a signal. A start that fails ends with gunicorn's code for that, which stops the master."""
        self.config.app = self.wsgi
        self.config.timeout_graceful_shutdown = self.graceful_timeout
        self.wsgi.state.draining = False
        server = DrainingServer(self.config, self.wsgi, self.drain_delay, self.callback_notify)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                # The sockets inside gunicorn's wrappers, which uvloop would close behind their back.
                runner.run(server.serve(sockets=[listener.sock for listener in self.sockets]))
            except asyncio.CancelledError:
                return  # a signal during the start
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
