"""Runs everything for `ragherd dev`: starts Redis, the model server and the service, and stops them in reverse order.

Ctrl-C, SIGTERM and a closed terminal have the same effect: one `KeyboardInterrupt`, then an undisturbed stop.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

from api.embedded import service_plan
from api.embedded.child_process import ChildProcess, LaunchError, MissingPackage
from api.embedded.model_process import STAND_IN, ModelServer, embedded_model_server, find_ollama, first_text_model
from api.embedded.model_server.catalog import require_model_packages
from api.embedded.redis_server import EmbeddedRedis, embedded_redis, find_redis_binary, supervisor_lock
from api.embedded.service_plan import Addresses, BackendPlan, running_service
from api.embedders.minilm import model_files
from api.errors import SettingsError
from api.settings import Settings
from worker_config.client_connections import PortTaken, require_free_port

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """Makes the first stop signal raise `KeyboardInterrupt` within the block. Further ones are ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if number is not signal.SIGHUP or before[number] is not signal.SIG_IGN:  # keep the effect of nohup
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """Ignores further stop signals, so that a second Ctrl-C does not interrupt the stop."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_stop_signals()
    raise KeyboardInterrupt


Report = Callable[[str], None]
Resource = TypeVar("Resource")


@dataclass(frozen=True, slots=True)
class Stack:
    """The running parts. `redis` and `model_server` are None if the settings name others."""

    addresses: Addresses
    workers: int
    language_model: str
    redis: EmbeddedRedis | None
    model_server: ModelServer | None
    service: ChildProcess
    logs: Path

    @property
    def children(self) -> list[ChildProcess]:
        """All processes that were started."""
        servers = [server.child for server in (self.redis, self.model_server) if server is not None]
        return [*servers, self.service]

    def require_running(self) -> None:
        """Raises `ChildEnded` if a process has ended by itself."""
        for child in self.children:
            child.require_running()

    def watch(self) -> None:
        """Never returns. Raises `ChildEnded` if a process ends, `KeyboardInterrupt` if all must stop."""
        while True:
            self.require_running()
            time.sleep(0.2)


@contextmanager
def running_stack(settings: Settings, data_dir: Path, report: Report) -> Iterator[Stack]:
    """Starts what the settings do not name, then the service. Stops all of it when the context ends.

    Calls `report` with a line for each step. Raises `LaunchError`.
    """
    where = service_plan.addresses(settings)
    logs = data_dir / "logs"
    ollama = find_ollama(settings.ollama.base_urls)
    require_packages(settings, ollama)
    with ExitStack() as stack:
        stack.enter_context(supervisor_lock(data_dir))
        check_ports(where)
        try:
            redis = _start_redis(stack, settings, data_dir, report)
            model_server, backends = _start_model_server(stack, settings, ollama, logs, report)
            if redis is not None:
                backends = replace(backends, redis_url=redis.url)
            service = _start_service(stack, settings, backends, where, logs, report)
            model = service_plan.language_model(settings, backends)
            yield Stack(where, service_plan.workers(settings), model, redis, model_server, service, logs)
        finally:
            ignore_stop_signals()


def require_packages(settings: Settings, ollama: str | None) -> None:
    """Raises `MissingPackage` if something has to be started, but is not installed. Writes nothing.

    `ollama` is the URL of an Ollama that answers.
    """
    if not service_plan.is_set(settings.redis, "url"):
        find_redis_binary()
    try:
        if ollama is None:
            require_model_packages()
        if service_plan.needs_packaged_embedder(settings):
            model_files(None)
    except SettingsError as error:
        raise MissingPackage(str(error)) from None


def check_ports(where: Addresses) -> None:
    """Raises `LaunchError` with a line that names the setting if a port is in use."""
    for name, port in (("PORT", where.port), ("METRICS_PORT", where.metrics_port)):
        try:
            require_free_port(name, where.host, port)
        except PortTaken as error:
            raise LaunchError(str(error)) from None


def _start_redis(stack: ExitStack, settings: Settings, data_dir: Path, report: Report) -> EmbeddedRedis | None:
    if service_plan.is_set(settings.redis, "url"):
        report("Redis: using REDIS_URL")
        return None
    report("Redis: REDIS_URL is not set, starting the embedded Redis")
    embedded = embedded_redis(
        data_dir / "redis", log=data_dir / "logs" / "redis.log", report=lambda line: report(f"Redis: {line}")
    )
    server = _timed(stack, embedded, "Redis", report)
    report(f"Redis: listening on {server.url}, data in {data_dir / 'redis'}")
    return server


def _start_model_server(
    stack: ExitStack, settings: Settings, ollama: str | None, logs: Path, report: Report
) -> tuple[ModelServer | None, BackendPlan]:
    if ollama is not None:
        return None, BackendPlan(ollama_model=_choose_model(settings, ollama, report))
    report(f"Model: no Ollama answers at {settings.ollama.ollama_base_url}, starting {STAND_IN}")
    server = _timed(stack, embedded_model_server(logs / "model_server.log"), "Model", report)
    return server, BackendPlan(stand_in_url=server.url)


def _choose_model(settings: Settings, ollama: str, report: Report) -> str:
    if service_plan.is_set(settings.ollama, "llm_model"):
        report(f"Model: {settings.ollama.llm_model} on Ollama at {ollama}")
        return settings.ollama.llm_model
    model = first_text_model(ollama)
    if model is None:
        raise LaunchError(f"Ollama at {ollama} has no text model: run ollama pull llama3.2")
    report(f"Model: {model}, the first text model on Ollama at {ollama} (LLM_MODEL is not set)")
    return model


def _start_service(
    stack: ExitStack, settings: Settings, backends: BackendPlan, where: Addresses, logs: Path, report: Report
) -> ChildProcess:
    environment = service_plan.service_environment(settings, backends, where, os.environ)
    report(f"Service: starting gunicorn with {environment['WORKERS']} workers")
    service = running_service(where.url, environment, logs / "service.log")
    return _timed(stack, service, "Service", report)


def _timed(stack: ExitStack, resource: AbstractContextManager[Resource], name: str, report: Report) -> Resource:
    began = time.monotonic()
    opened = stack.enter_context(resource)
    report(f"{name}: ready after {time.monotonic() - began:.1f} s")
    return opened
