"""gunicorn's configuration: `gunicorn -c worker_config/gunicorn_conf.py api.asgi:app`.

All values come from the service's settings (docs/configuration.md). Objects that the master starts are attributes of
the server, because a reload (SIGHUP) executes this file again.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import signal
import sys
from typing import Any, NoReturn

import worker_config.lean_imports  # noqa: F401 - before the modules that import structlog
from api.errors import SettingsError
from api.observability.logs import configure_logging, stdlib_logging
from api.settings import Settings, access_warnings, anonymous_refusal, load_settings
from worker_config.client_connections import PortTaken, bind_address, listen, listening_host, require_free_port
from worker_config.connection_guard import ConnectionLimits
from worker_config.draining_server import DrainTimes
from worker_config.limits import (
    available_cpus,
    descriptor_limit,
    limit_in_bytes,
    max_connections_of,
    raise_limit,
    too_many_connections,
)
from worker_config.memory_guard import MemoryGuard
from worker_config.metrics_process import VARIABLE, MetricsProcess, prepare_directory
from worker_config.rolling_arbiter import die_with_parent, take_over

APP = "api.asgi:app"
CLOSING_SECONDS = 5.0
"""Time for a worker to close its resources after the drain and its last request."""


def _abort_start(line: str) -> NoReturn:
    """Prints one line and exits with code 2, because gunicorn uses 3 and 4."""
    sys.stderr.write(f"{line}\n")
    sys.exit(2)


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        _abort_start(str(error))


_all = _settings()
_server = _all.server

bind = bind_address(_server.host, _server.port)
workers = _server.workers or available_cpus()
worker_class = "worker_config.draining_server.DrainingWorker"
proc_name = "ragherd"
preload_app = False
keepalive = math.ceil(_server.keepalive_timeout)
timeout = 30
max_requests = _server.max_requests
max_requests_jitter = _server.max_requests_jitter
graceful_timeout = math.ceil(_server.drain_delay + _server.graceful_timeout + CLOSING_SECONDS)
control_socket_disable = True
loglevel = _server.log_level
logconfig_dict = stdlib_logging(_server.log_level, texts=_server.log_questions)


def on_starting(server: Any) -> None:
    """Runs before anything listens or forks. Checks that both ports are free and creates the metrics directory."""
    server.metrics_process = None
    raise_limit()
    if too_many := too_many_connections(_all):
        _abort_start(too_many)
    try:
        if not _sockets_are_inherited():
            require_free_port("PORT", _server.host, _server.port)
        metrics_listener = listen("METRICS_PORT", _server.host, _server.metrics_port) if _server.metrics_port else None
    except PortTaken as error:
        _abort_start(str(error))
    try:
        server.metrics_directory = prepare_directory()
    except OSError as error:
        _abort_start(f"{VARIABLE}: {': '.join(filter(None, (error.filename, error.strerror)))}")
    if metrics_listener:
        server.metrics_process = MetricsProcess(metrics_listener, server.metrics_directory.path)
    server.bound_at_start = _bound()
    take_over(server)
    _guard_memory(server)


def when_ready(server: Any) -> None:
    """Runs when the sockets listen and no worker accepts yet. Aborts if anonymous access is not allowed on their
    addresses.
    """
    _check_listeners(server)
    if server.metrics_process:
        server.metrics_process.start()
    _preload(server.app.app_uri)


def on_reload(server: Any) -> None:
    """Runs after SIGHUP with the new configuration."""
    _guard_memory(server)
    if too_many := too_many_connections(_all):
        server.log.warning("%s", too_many)
    changed = [name for name, value in _bound().items() if server.bound_at_start[name] != value]
    if changed:
        server.log.warning("%s: changes take effect only after a restart", ", ".join(changed))


def post_fork(server: Any, worker: Any) -> None:
    """Runs in the worker before it loads the application."""
    die_with_parent(worker.ppid, signal.SIGKILL)
    if server.metrics_process:
        server.metrics_process.close_in_worker()
    configure_logging(_server.log_level, texts=_server.log_questions)
    worker.limits = ConnectionLimits(
        header_timeout=_server.header_timeout,
        body_timeout=_server.body_timeout,
        keepalive_timeout=_server.keepalive_timeout,
        max_connections=max_connections_of(descriptor_limit(), _all),
    )
    worker.times = DrainTimes(
        drain_delay=_server.drain_delay,
        graceful_timeout=_server.graceful_timeout,
        # Nothing waits for a replaced worker, so its last answer gets the usual time.
        replaced_timeout=_all.ollama.ollama_total_timeout + _server.graceful_timeout,
    )


def child_exit(server: Any, worker: Any) -> None:
    """Runs in the master after a worker ended."""
    server.metrics_directory.forget_worker(worker.pid)


def on_exit(server: Any) -> None:
    """Runs in the master before it exits."""
    if server.metrics_process:
        server.metrics_process.stop()
    server.metrics_directory.remove()


def _check_listeners(server: Any) -> None:
    """Checks the real addresses: the settings checked HOST, but `gunicorn --bind` or systemd may have set others."""
    reached = [host for host in map(listening_host, server.LISTENERS) if host is not None]
    for host in reached:
        if refusal := anonymous_refusal(_all.access, host):
            server.metrics_directory.remove()
            _abort_start(refusal)
    for warning in access_warnings(_all.access, reached):
        server.log.warning("%s", warning)


def _preload(app: str) -> None:
    """Imports the app's modules before the first fork, so that workers share their memory and start sooner.

    Each worker still creates its own app, with the settings at its start. The Lua scripts are read here too: after an
    upgrade on disk, a running master must not mix its modules with newer scripts. `gc.freeze` keeps collections from
    writing to the modules' pages, which would copy them. Modules are no garbage, and looking for some among them took
    a sixth of the time of their imports.
    """
    if app == APP:
        gc.disable()
        try:
            importlib.import_module("api.app")
            importlib.import_module("api.redis_store.scripts").read_all()
            gc.freeze()
        finally:
            gc.enable()


def _bound() -> dict[str, Any]:
    return {"HOST": _server.host, "PORT": _server.port, "METRICS_PORT": _server.metrics_port}


def _guard_memory(server: Any) -> None:
    limit = _server.worker_memory_limit
    server.memory = MemoryGuard(limit_in_bytes(limit) if limit else None)


def _sockets_are_inherited() -> bool:
    """Returns whether systemd passed the sockets."""
    return "LISTEN_FDS" in os.environ
