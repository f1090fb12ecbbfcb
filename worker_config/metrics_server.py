"""The metrics process: `python -m worker_config.metrics_server`. Serves what all workers of one master counted.

GET /metrics and GET /health/live on a socket that it inherits, so that the port is never free between two of it. It
lives no longer than its master. It never exits with 3 or 4, which gunicorn reads as a worker that can not boot.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from api.observability.logs import configure_logging
from api.observability.worker_files import WorkerFilesCollector
from worker_config.rolling_arbiter import die_with_parent

PLAIN = [("Content-Type", "text/plain; charset=utf-8")]
MAX_CONNECTIONS = 64
"""Held at once: each has a thread. For a further one the oldest is closed."""
WHOLE_TIMEOUT = 30.0
"""Seconds for a request and its response."""
SECONDS_BETWEEN_LOOKS_AT_PARENT = 1.0
STDERR = 2


class Handler(WSGIRequestHandler):
    """Gives up on a client that says nothing for 10 s, and logs no requests."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Nothing: a scrape every few seconds is no news."""


class InheritedSocketServer(ThreadingWSGIServer):  # type: ignore[misc]  # untyped library
    """Serves on a socket that already listens, one request a connection. Silent clients keep nobody out."""

    def __init__(
        self,
        listener: socket.socket,
        application: WSGIApplication,
        most: int = MAX_CONNECTIONS,
        timeout: float = WHOLE_TIMEOUT,
    ) -> None:
        self._most = most
        self._seconds = timeout
        self._held: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.socket.close()  # type: ignore[has-type]  # untyped library
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.set_app(application)

    def process_request(self, request: socket.socket, client_address: object) -> None:
        """Accepted; from here on a thread has it."""
        with self._lock:
            if len(self._held) >= self._most:
                self._break_off_oldest()
            self._held[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Twice a second, and after each connection that was accepted."""
        with self._lock:
            while self._held and time.monotonic() - next(iter(self._held.values())) >= self._seconds:
                self._break_off_oldest()

    def shutdown_request(self, request: socket.socket) -> None:
        """By the thread, at its end."""
        with self._lock:
            self._held.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """By the thread. A client that is silent or gone is no news."""
        if not isinstance(sys.exception(), OSError):
            structlog.get_logger("worker_config.metrics_server").exception("A request failed")

    def _break_off_oldest(self) -> None:
        """Its thread then finds the end of the connection."""
        oldest = next(iter(self._held))
        del self._held[oldest]
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)


def application(directory: str) -> WSGIApplication:
    """GET /metrics, GET /health/live, and 404."""
    registry = CollectorRegistry()
    WorkerFilesCollector(registry, path=directory)
    metrics: WSGIApplication = make_wsgi_app(registry)

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return _or_error(metrics, environ, start_response)
        found = environ["PATH_INFO"] == "/health/live"
        start_response("200 OK" if found else "404 Not Found", PLAIN)
        return [b"alive\n" if found else b"see /metrics\n"]

    return serve


def _or_error(metrics: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    try:
        return metrics(environ, start_response)
    except Exception:  # noqa: BLE001 - a file that can not be read fails this scrape, in one line, not the process
        structlog.get_logger("worker_config.metrics_server").exception("The metrics could not be read")
        start_response("500 Internal Server Error", PLAIN)
        return [b"the metrics could not be read\n"]


def main() -> None:
    """Serves until the parent is gone or SIGTERM comes."""
    parser = argparse.ArgumentParser(prog="worker_config.metrics_server", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--dir", required=True, help="the PROMETHEUS_MULTIPROC_DIR of the workers")
    parser.add_argument("--parent-pid", type=int, required=True, help="the master")
    arguments = parser.parse_args()
    _close_all_but(arguments.fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the master says when to end
    die_with_parent(arguments.parent_pid, signal.SIGKILL)
    configure_logging("info")
    server = InheritedSocketServer(socket.socket(fileno=arguments.fd), application(arguments.dir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _until(lambda: os.getppid() != arguments.parent_pid)


def _close_all_but(kept: int) -> None:
    """What the master passes on unasked: a copy of the service's socket would keep a port open that nobody serves."""
    for number in _open_descriptors():
        if number > STDERR and number != kept:
            with suppress(OSError):  # the one that the list was read from
                os.close(number)


def _open_descriptors() -> Iterable[int]:
    """Where the kernel lists them, without counting up to the limit, which may be a thousand million."""
    listed = Path("/proc/self/fd")
    return [int(entry.name) for entry in listed.iterdir()] if listed.is_dir() else range(os.sysconf("SC_OPEN_MAX"))


def _until(condition: Callable[[], bool]) -> None:
    """Looks again and again: where the kernel does not tell of the parent's death, this does."""
    pause = threading.Event()
    while not condition():
        pause.wait(SECONDS_BETWEEN_LOOKS_AT_PARENT)


if __name__ == "__main__":
    main()
