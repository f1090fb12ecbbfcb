"""What `ragherd dev` runs and with which environment: decisions made from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from api.embedded.model_process import STAND_IN_EMBEDDER, STAND_IN_LLM
from api.embedded.ports import free_port
from api.embedded.service_process import STOP_DEADLINE
from api.settings import Settings

DEV_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the service is to listen. `metrics_port` 0: it has no metrics port."""

    host: str
    port: int
    metrics_port: int

    @property
    def url(self) -> str:
        """Of the service, as a client on this machine reaches it."""
        return f"http://{self._reachable_host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Of the metrics port, or of the service itself where METRICS_PORT is 0."""
        return f"http://{self._reachable_host}:{self.metrics_port or self.port}/metrics"

    @property
    def _reachable_host(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True)
class Backends:
    """What the service leans on: `None` is what the settings already say."""

    redis_url: str | None = None
    stand_in_url: str | None = None
    ollama_model: str | None = None


def is_set(concern: BaseModel, field: str) -> bool:
    """Whether the environment or `.env` gave a value, rather than the default."""
    return field in concern.model_fields_set


def addresses(settings: Settings) -> Addresses:
    """The configured ones; PORT=0 is any free port, METRICS_PORT=0 none."""
    server = settings.server
    return Addresses(server.host, server.port or free_port(), server.metrics_port)


def workers(settings: Settings) -> int:
    """WORKERS, or two: enough to see that they share one memory."""
    return settings.server.workers or DEV_WORKERS


def language_model(settings: Settings, backends: Backends) -> str:
    """The model that answers."""
    if is_set(settings.ollama, "llm_model"):
        return settings.ollama.llm_model
    if backends.stand_in_url is not None:
        return STAND_IN_LLM
    return backends.ollama_model or settings.ollama.llm_model


def service_environment(
    settings: Settings, backends: Backends, where: Addresses, inherited: Mapping[str, str]
) -> dict[str, str]:
    """`inherited` with what the launcher decided; what a person has set stays as it is."""
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
        environment["GRACEFUL_TIMEOUT"] = str(int(STOP_DEADLINE) - 1)
    return environment
