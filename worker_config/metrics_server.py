"""The metrics process: `python -m worker_config.metrics_server`. Serves the counts of all workers of one master.

It answers GET /metrics and GET /health/live on an inherited socket, so the port stays bound while the process is
restarted. It ends with its master. It never exits with 3 or 4, because gunicorn takes those for a worker that cannot
boot.
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
"""Each has a thread. A new connection beyond the limit closes the oldest."""
REQUEST_TIMEOUT = 30.0
"""Seconds for a request and its response."""
PARENT_CHECK_SECONDS = 1.0
STDERR = 2


class Handler(WSGIRequestHandler):
    """Closes a connection that is silent for 10 s, and logs no requests."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Does nothing, because a scrape every few seconds is not worth a line."""


class InheritedSocketServer(ThreadingWSGIServer):  # type: ignore[misc]  # untyped library
    """Serves on an inherited listening socket, one request per connection. Silent clients cannot block others."""

    def __init__(
        self,
        listener: socket.socket,
        application: WSGIApplication,
        max_connections: int = MAX_CONNECTIONS,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._max_connections = max_connections
        self._seconds = timeout
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.socket.close()  # type: ignore[has-type]  # untyped library
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.set_app(application)

    def process_request(self, request: socket.socket, client_address: object) -> None:
        """Hands an accepted connection to a thread."""
        with self._lock:
            if len(self._open) >= self._max_connections:
                self._close_oldest()
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Runs twice per second and after each accepted connection."""
        with self._lock:
            while self._open and time.monotonic() - next(iter(self._open.values())) >= self._seconds:
                self._close_oldest()

    def shutdown_request(self, request: socket.socket) -> None:
        """Runs in the thread when a connection ends."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Runs in the thread. Silent or disconnected clients are not logged."""
        if not isinstance(sys.exception(), OSError):
            structlog.get_logger("worker_config.metrics_server").exception("A request failed")

    def _close_oldest(self) -> None:
        """The connection's thread then reads its end."""
        oldest = next(iter(self._open))
        del self._open[oldest]
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)


def application(directory: str) -> WSGIApplication:
    """Returns a WSGI application with GET /metrics and GET /health/live; everything else is 404."""
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
    except Exception:  # noqa: BLE001 - an unreadable file fails only this scrape
        structlog.get_logger("worker_config.metrics_server").exception("Cannot read the metrics")
        start_response("500 Internal Server Error", PLAIN)
        return [b"cannot read the metrics\n"]


def main() -> None:
    """Serves until the parent is gone or SIGTERM arrives."""
    parser = argparse.ArgumentParser(prog="worker_config.metrics_server", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--dir", required=True, help="the PROMETHEUS_MULTIPROC_DIR of the workers")
    parser.add_argument("--parent-pid", type=int, required=True, help="the master")
    arguments = parser.parse_args()
    _close_others(arguments.fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the master decides when to end
    die_with_parent(arguments.parent_pid, signal.SIGKILL)
    configure_logging("info")
    server = InheritedSocketServer(socket.socket(fileno=arguments.fd), application(arguments.dir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _poll_until(lambda: os.getppid() != arguments.parent_pid)


def _close_others(kept: int) -> None:
    """Closes inherited descriptors: a copy of the service's socket would keep a port open that nothing serves."""
    for number in _open_descriptors():
        if number > STDERR and number != kept:
            with suppress(OSError):  # the descriptor of the listing itself
                os.close(number)


def _open_descriptors() -> Iterable[int]:
    """Lists descriptors from /proc without counting up to the limit, which may be a billion."""
    listed = Path("/proc/self/fd")
    return [int(entry.name) for entry in listed.iterdir()] if listed.is_dir() else range(os.sysconf("SC_OPEN_MAX"))


def _poll_until(condition: Callable[[], bool]) -> None:
    """Polls `condition`, for systems where the kernel does not report the parent's death."""
    pause = threading.Event()
    while not condition():
        pause.wait(PARENT_CHECK_SECONDS)


if __name__ == "__main__":
    main()
