"""Derives the service's environment for `ragherd dev` from the settings, and runs the service as a child."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import BaseModel

from api.embedded.child_process import ChildProcess, LaunchError, last_line, start_child
from api.embedded.model_process import STAND_IN_EMBEDDER, STAND_IN_LLM
from api.module_command import module_command, module_environment
from api.settings import Settings

STOP_SECONDS = 3.0
"""Time from SIGTERM to SIGKILL. Short, because a person who pressed Ctrl-C is waiting."""


@contextmanager
def running_service(
    url: str, environment: Mapping[str, str], log: Path, *, timeout: float = 60.0
) -> Iterator[ChildProcess]:
    """Runs the service with `environment` until the context ends, ready at `url`. Raises `LaunchError`."""
    command = module_command("ragherd", "serve")
    environment = module_environment(environment)
    child = start_child("the service", command, environment=environment, log=log, explain=first_error)
    try:
        with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as client:
            if not child.await_ready(lambda: _is_ready(client), timeout):
                raise LaunchError(f"the service was not ready within {timeout:.0f} s (log: {log})")
        yield child
    finally:
        child.stop(STOP_SECONDS)


def first_error(log: str) -> str:
    """Returns why the service ended: the first error in its JSON log, shortened to one line, or else the last line."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in {"error", "critical"}:
            return last_line(str(entry.get("exception") or entry.get("message") or entry.get("event")))
    return last_line(log)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx.HTTPError:
        return False


def free_port(preferred: int | None = None) -> int:
    """Returns `preferred` if it is free, or else any free loopback port."""
    if preferred is not None and _is_free(preferred):
        return preferred
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


DEV_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses on which the service listens. `metrics_port` 0 disables the metrics port."""

    host: str
    port: int
    metrics_port: int

    @property
    def url(self) -> str:
        """The service's URL for clients on this machine."""
        return f"http://{self._reachable_host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics, which the service itself serves if METRICS_PORT is 0."""
        return f"http://{self._reachable_host}:{self.metrics_port or self.port}/metrics"

    @property
    def _reachable_host(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """The backends that override the settings. None keeps the setting."""

    redis_url: str | None = None
    stand_in_url: str | None = None
    ollama_model: str | None = None


def is_set(group: BaseModel, field: str) -> bool:
    """Returns whether the environment or `.env` sets a field, so that its value is not the default."""
    return field in group.model_fields_set


def addresses(settings: Settings) -> Addresses:
    """Returns the configured addresses. PORT=0 selects a free port, METRICS_PORT=0 none."""
    server = settings.server
    return Addresses(server.host, server.port or free_port(), server.metrics_port)


def workers(settings: Settings) -> int:
    """Returns WORKERS, or two, which is enough to show that workers share the cache."""
    return settings.server.workers or DEV_WORKERS


def language_model(settings: Settings, backends: BackendPlan) -> str:
    """Returns the name of the model that answers."""
    if is_set(settings.ollama, "llm_model"):
        return settings.ollama.llm_model
    if backends.stand_in_url is not None:
        return STAND_IN_LLM
    return backends.ollama_model or settings.ollama.llm_model


def needs_packaged_embedder(settings: Settings) -> bool:
    """Returns whether the service loads the embedder of the packages: by default, or with EMBEDDER=onnx."""
    chosen = settings.embedder
    return chosen.embed_model_path is None and (not is_set(chosen, "embedder") or chosen.embedder == "onnx")


def service_environment(
    settings: Settings, backends: BackendPlan, where: Addresses, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Returns `inherited` with the launcher's decisions. Settings that a person made stay."""
    environment = dict(inherited)
    environment["PORT"] = str(where.port)
    environment["METRICS_PORT"] = str(where.metrics_port)
    environment["WORKERS"] = str(workers(settings))
    environment["LLM_MODEL"] = language_model(settings, backends)
    if backends.redis_url is not None:
        environment["REDIS_URL"] = backends.redis_url
    if backends.stand_in_url is not None:
        environment["OLLAMA_BASE_URL"] = backends.stand_in_url
        if not is_set(settings.embedder, "embed_model"):
            environment["EMBED_MODEL"] = STAND_IN_EMBEDDER
    if not is_set(settings.embedder, "embedder"):
        environment["EMBEDDER"] = "onnx"
    if not is_set(settings.server, "graceful_timeout"):
        environment["GRACEFUL_TIMEOUT"] = str(int(STOP_SECONDS) - 1)
    return environment
