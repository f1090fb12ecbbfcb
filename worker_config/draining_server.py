"""A uvicorn server and gunicorn worker that drain before they exit.

SIGTERM has two meanings, and `WorkerFlags` distinguishes them. If the replica is shutting down, `app.state.draining`
makes /health/ready return 503, while the socket still accepts for `drain_delay` seconds so that load balancers can
react. If a successor has replaced this worker, the replica stays ready and the worker stops accepting at once.

Both continue in the same way: requests in flight finish, responses carry `Connection: close`, and idle connections are
closed. SIGINT and SIGQUIT end the worker at once. The lifespan always closes what it opened.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop
from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from worker_config.client_connections import TimedProtocol
from worker_config.connection_guard import ConnectionGuard, ConnectionLimits
from worker_config.rolling_arbiter import WorkerFlags

CLOSE = (b"connection", b"close")


class ClosingApp:
    """Adds `Connection: close` to responses once `closing` is set.

    Otherwise a client or load balancer that reuses a connection could send its next request to a worker that is closing
    it. uvicorn closes the connection after such a response.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.closing = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Any) -> None:
            if self.closing and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            await send(message)

        await self._app(scope, receive, send_closing)


ABORT_TIMEOUT = 0.5
"""Seconds for cancelled requests to end."""
HEARTBEAT_SECONDS = 5.0
"""Interval of heartbeats to the master. uvicorn would send them by the wall clock: after it was set back by a minute,
none for a minute, and the master would kill the worker.
"""
MAX_START_SECONDS = 90.0
"""A starting worker sends heartbeats for this time. Loading a large re-ranker from a slow disk takes long."""
QUIET_SECONDS = (2.0, 6.0)
"""Least and most time without data after which a draining worker assumes that no request is in transit.

Many clients, httpx and Node among them, use a connection again within 5 s.
"""
POLL_SECONDS = 0.05
"""Interval between checks for requests in flight."""


@dataclass(frozen=True, slots=True)
class DrainTimes:
    """Seconds to accept after SIGTERM, to finish requests then, and to finish them after a replacement."""

    drain_delay: float = 0.0
    graceful_timeout: float = 30.0
    replaced_timeout: float = 30.0

    @property
    def quiet(self) -> float:
        """Seconds without data after which a connection may be closed. Responses in the drain close theirs anyway."""
        least, most = QUIET_SECONDS
        return min(max(least, self.drain_delay + 1), most)


def _is_not_cancellation(record: logging.LogRecord) -> bool:
    """A log filter. uvicorn's error for each cancelled request is dropped, because the worker logs once that it cut
    them off.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _mute_cancellations() -> None:
    """From here on, only this worker cancels requests."""
    logging.getLogger("uvicorn.error").addFilter(_is_not_cancellation)


class DrainingServer(Server):
    """Flags that the worker should be recycled after `max_requests`, and keeps serving until it is replaced."""

    def __init__(
        self,
        config: Config,
        app: ClosingApp,
        state: Any,
        flags: WorkerFlags,
        times: DrainTimes,
        max_requests: int,
        guard: ConnectionGuard,
        heartbeat: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        config.callback_notify = None  # see `HEARTBEAT_SECONDS`
        self._app = app
        self._state = state
        self._flags = flags
        self._times = times
        self._max_requests = max_requests
        self._guard = guard
        self._heartbeat = heartbeat
        self._deadline = 0.0
        self._beat_at = -math.inf
        self._serving: asyncio.Task[Any] | None = None
        self._log = logging.getLogger("worker_config.worker")

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles signals on the event loop while serving. Does not raise them again, so the exit code is 0."""
        self._serving = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self.abort)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts uvicorn, then flags the worker as ready."""
        heartbeats = asyncio.create_task(self._send_heartbeats(MAX_START_SECONDS))
        try:
            await super().startup(sockets)
        finally:
            heartbeats.cancel()
        if self.started:
            self._flags.mark_ready()

    async def on_tick(self, counter: int) -> bool:
        """Runs ten times per second. uvicorn itself would stop at `max_requests`."""
        now = asyncio.get_running_loop().time()
        self._guard.sweep(now)
        if now - self._beat_at >= HEARTBEAT_SECONDS:
            self._beat_at = now
            await self._heartbeat()
        if self.server_state.total_requests >= self._max_requests:
            self._flags.mark_recycle()
        return await super().on_tick(counter)

    def drain(self) -> None:
        """Handles SIGTERM. A second SIGTERM comes from a master that is also ending, so it shortens the limit."""
        if not self.started:
            self._cancel_start()
        elif self._app.closing:
            self._end_within(self._times.graceful_timeout)
        elif self._flags.replaced:
            self._log.info("Stopping: a successor has replaced this worker")
            self._stop_accepting(self._times.replaced_timeout)
        else:
            self._state.draining = self._app.closing = True
            self._log.info("Draining: stop accepting in %s s", self._times.drain_delay)
            loop = asyncio.get_running_loop()
            loop.call_later(self._times.drain_delay, self._stop_accepting, self._times.graceful_timeout)

    def abort(self) -> None:
        """Handles SIGINT and SIGQUIT: cancels requests in flight."""
        if not self.started:
            self._cancel_start()
            return
        self._state.draining = True
        _mute_cancellations()
        self._log.warning("Stopping at once: cancelled %s requests", len(self.server_state.tasks))
        for task in self.server_state.tasks:
            task.cancel()
        self._stop_accepting(ABORT_TIMEOUT)

    def _stop_accepting(self, seconds: float) -> None:
        """Stops accepting at the next tick. Requests in flight then have `seconds` to finish."""
        self._app.closing = self.should_exit = True
        self._end_within(seconds)

    def _end_within(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        self._deadline = min(self._deadline or deadline, deadline)

    def _cancel_start(self) -> None:
        """Nothing is served yet, so there is nothing to wait for."""
        self.should_exit = True
        self._log.info("Stopping before the start is complete")
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports the cancelled lifespan as an error
        if self._serving is not None:
            self._serving.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops accepting, waits for requests in flight, and lets uvicorn do the rest."""
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            for server in self.servers:
                server.close()
            await self._wait_for_requests()
            _mute_cancellations()
            self.config.timeout_graceful_shutdown = ABORT_TIMEOUT  # type: ignore[assignment]  # any number does
            await super().shutdown(sockets)
        finally:
            heartbeats.cancel()

    async def _wait_for_requests(self) -> None:
        """Waits until nothing is open any more, or until the deadline."""
        loop = asyncio.get_running_loop()
        state = self.server_state
        while (state.connections or state.tasks) and loop.time() < self._deadline:
            self._guard.sweep(loop.time())
            for connection in list(state.connections):
                if isinstance(connection, TimedProtocol) and connection.is_quiet(self._times.quiet):
                    connection.shutdown()
            await asyncio.sleep(POLL_SECONDS)

    async def _send_heartbeats(self, seconds: float = math.inf) -> None:
        """Prevents the master from killing the worker."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # untyped library
    """The `worker_class`. `post_fork` sets `times` and `limits` from the settings."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - the base class declares it this way
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
    }
    times = DrainTimes()
    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Runs in the master before the fork, so both processes share the flags."""
        super().__init__(*arguments, **named)
        self.flags = WorkerFlags()
        self.config.limit_max_requests = None  # uvicorn would exit at the limit, without a successor

    def run(self) -> None:
        """Serves until a signal. A failed start exits with gunicorn's code for it."""
        app = ClosingApp(self.wsgi)
        self.config.app = app
        state = self.wsgi.state
        state.draining = False
        state.replaces = self.age > self.cfg.workers  # the first workers of a master have the ages 1, 2, ...
        guard = ConnectionGuard(self.limits, state.metrics)
        fast = getattr(state, "fast_path", None)
        self.config.http = partial(TimedProtocol, guard=guard, fast=fast, closing=lambda: app.closing)
        server = DrainingServer(
            self.config, app, state, self.flags, self.times, self.max_requests, guard, self.callback_notify
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                # Pass the inner sockets: uvloop would close gunicorn's wrappers without their knowledge.
                runner.run(server.serve(sockets=[listener.sock for listener in self.sockets]))
            except asyncio.CancelledError:
                return  # a signal during the start
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
