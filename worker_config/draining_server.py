"""uvicorn's server, leaving in an orderly way. SIGTERM means one of two things, which the worker's board tells apart.

The replica leaves: `app.state.draining` is set, so that /health/ready says 503, while the socket still accepts for
`drain_delay` seconds and load balancers turn away. Or a successor has taken this worker's place: the replica stays
ready, and this worker stops accepting at once. From then on it is the same: what is in flight ends, responses carry
`Connection: close`, quiet connections are closed. SIGINT and SIGQUIT end it at once. Either way the lifespan closes
what it opened.

The application, told to every client when its worker leaves: responses then carry `Connection: close`.

A client, or a load balancer, that reuses a connection would else send its next request to a worker that is closing
it. uvicorn closes the connection after a response with this header.

The worker that gunicorn makes: uvicorn on uvloop and httptools, in `DrainingServer`.
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

from worker_config.connection_guard import ConnectionGuard, ConnectionLimits
from worker_config.connections import TimedProtocol
from worker_config.rolling_arbiter import WorkerFlags

CLOSE = (b"connection", b"close")


class ClosingApp:
    """Passes everything on. `closing` is set once, when the worker begins to leave."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.closing = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Any) -> None:
            if self.closing and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            await send(message)

        await self._app(scope, receive, told)


ABORT_TIMEOUT = 0.5
"""Seconds that cancelled requests have to end."""
HEARTBEAT = 5.0
"""Seconds between two signs of life to the master while it starts, and while requests in flight end."""
START = 90.0
"""Seconds of a start for which it gives signs of life: a large re-ranker comes from a slow disk."""
QUIET = 2.0
"""Seconds after which a leaving worker takes it that no request is on its way on a connection."""
LOOK = 0.05
"""Seconds between two looks at what is still in flight."""


@dataclass(frozen=True, slots=True)
class DrainTimes:
    """Seconds: accepting after SIGTERM, and for what is in flight then; the same where a successor serves."""

    drain_delay: float = 0.0
    graceful_timeout: float = 30.0
    replaced_timeout: float = 30.0


def _is_no_cut(record: logging.LogRecord) -> bool:
    """A filter of uvicorn's log: that requests were cut off is said once, and is no fault of the application."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _cut_off_quietly() -> None:
    """From here on a cancelled request is one that this worker does not wait for any longer."""
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)


class DrainingServer(Server):
    """`max_requests`: after so many the board says so, and the worker serves on until it is replaced."""

    def __init__(
        self,
        config: Config,
        app: ClosingApp,
        state: Any,
        board: WorkerFlags,
        leave: DrainTimes,
        max_requests: int,
        guard: ConnectionGuard,
        heartbeat: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._state = state
        self._board = board
        self._times = leave
        self._max_requests = max_requests
        self._guard = guard
        self._heartbeat = heartbeat
        self._deadline = 0.0
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; then the master knows that this worker serves."""
        living = asyncio.create_task(self._keep_living(START))
        try:
            await super().startup(sockets)
        finally:
            living.cancel()
        if self.started:
            self._board.mark_ready()

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn does; it alone would stop at `max_requests`. Ten times a second."""
        self._guard.sweep(asyncio.get_running_loop().time())
        if self.server_state.total_requests >= self._max_requests:
            self._board.mark_recycle()
        return await super().on_tick(counter)

    def drain(self) -> None:
        """Leaves, as the board says. A second time: the master ends too, and has less patience."""
        if not self.started:
            self._give_up_starting()
        elif self._app.closing:
            self._end_within(self._times.graceful_timeout)
        elif self._board.replaced:
            self._log.info("Leaving: a successor has taken over")
            self._leave(self._times.replaced_timeout)
        else:
            self._state.draining = self._app.closing = True
            self._log.info("Draining: leaving in %s s", self._times.drain_delay)
            loop = asyncio.get_running_loop()
            loop.call_later(self._times.drain_delay, self._leave, self._times.graceful_timeout)

    def abort(self) -> None:
        """Leaves now: requests in flight are cancelled."""
        if not self.started:
            self._give_up_starting()
            return
        self._state.draining = True
        _cut_off_quietly()
        self._log.warning("Leaving at once, with %s requests cut off", len(self.server_state.tasks))
        for task in self.server_state.tasks:
            task.cancel()
        self._leave(ABORT_TIMEOUT)

    def _leave(self, seconds: float) -> None:
        """Stops accepting at the next tick; then what is in flight has so many seconds."""
        self._app.closing = self.should_exit = True
        self._end_within(seconds)

    def _end_within(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        self._deadline = min(self._deadline or deadline, deadline)

    def _give_up_starting(self) -> None:
        """Nobody is served yet: nothing is to be waited for."""
        self.should_exit = True
        self._log.info("Leaving before the start is complete")
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it calls the cancelled lifespan an error
        if self._serving is not None:
            self._serving.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops accepting, waits for what is in flight, and leaves the rest to uvicorn."""
        living = asyncio.create_task(self._keep_living())
        try:
            for server in self.servers:
                server.close()
            await self._let_requests_end()
            _cut_off_quietly()
            self.config.timeout_graceful_shutdown = ABORT_TIMEOUT  # type: ignore[assignment]  # any number does
            await super().shutdown(sockets)
        finally:
            living.cancel()

    async def _let_requests_end(self) -> None:
        """Until nothing is open any more, or the deadline."""
        loop = asyncio.get_running_loop()
        state = self.server_state
        while (state.connections or state.tasks) and loop.time() < self._deadline:
            self._guard.sweep(loop.time())
            for connection in list(state.connections):
                if isinstance(connection, TimedProtocol) and connection.is_quiet(QUIET):
                    connection.shutdown()
            await asyncio.sleep(LOOK)

    async def _keep_living(self, seconds: float = math.inf) -> None:
        """Without a sign of life the master would kill it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._heartbeat()
            await asyncio.sleep(HEARTBEAT)


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # untyped library
    """What `worker_class` names. `post_fork` sets `leave` and `limits` from the settings."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - the base class's name and kind
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
    }
    leave = DrainTimes()
    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """In the master, before the fork: the board is then both's."""
        super().__init__(*arguments, **named)
        self.board = WorkerFlags()
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
