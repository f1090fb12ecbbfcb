"""What `ragherd dev` prints once everything runs: what was started, where it is, and how to try it."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import typer

from api import __version__
from api.embedded.model_process import STAND_IN
from api.embedded.stack import Stack
from api.settings import Settings

QUESTION = "What does the circuit breaker do when Ollama fails?"


def summary(stack: Stack, settings: Settings) -> str:
    """Plain text of a dozen lines; the headline is bold on a terminal."""
    where = stack.addresses
    headline = f"Ragherd {__version__} answers on {where.url} with {stack.workers} worker(s)"
    return "\n".join(
        [
            "",
            typer.style(headline, bold=True),
            f"  Redis    {_redis(stack, settings)}",
            f"  Model    {_model(stack, settings)}",
            f"  Metrics  {where.metrics_url}",
            f"  API      {where.url}/docs",
            f"  Logs     {stack.logs}/service.log (and what else was started here, beside it)",
            "",
            "Try it, then ask the same in other words:",
            f"  {_curl(where.url, settings)}",
            "",
            "Ctrl-C stops all of it.",
        ]
    )


def _redis(stack: Stack, settings: Settings) -> str:
    if stack.redis is None:
        return f"your own: {without_password(settings.redis.url)}"
    return f"embedded, started here; look into it with: redis-cli -p {stack.redis.port}"


def _model(stack: Stack, settings: Settings) -> str:
    if stack.model_server is None:
        return f"{stack.language_model} on your Ollama: {settings.ollama.ollama_base_url}"
    return f"{stack.language_model} on {STAND_IN}: {stack.model_server.url}"


def _curl(url: str, settings: Settings) -> str:
    key = " -H 'authorization: Bearer ONE-OF-YOUR-API-KEYS'" if settings.access.api_keys else ""
    return f"curl -s {url}/query -H 'content-type: application/json'{key} -d '{{\"question\": \"{QUESTION}\"}}'"


def without_password(url: str) -> str:
    """A URL that may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
