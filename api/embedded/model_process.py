"""Finds an Ollama with a text model, or starts the embedded model server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from api.embedded.child_process import ChildProcess, LaunchError, start_child
from api.module_command import module_command, module_environment

STAND_IN = "a stand-in for Ollama with a very small model, for laptops and tests"
"""The name of the embedded model server in all messages."""

STAND_IN_LLM = "smollm2:135m"
STAND_IN_EMBEDDER = "all-minilm"

_READY = re.compile(r"^ready on (http://\S+)\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A running model server."""

    url: str
    child: ChildProcess


@contextmanager
def embedded_model_server(log: Path, *, threads: int = 1, timeout: float = 120.0) -> Iterator[ModelServer]:
    """Runs the model server on a free loopback port until the context ends. Raises `LaunchError`."""
    address = ("--host", "127.0.0.1", "--port", "0")
    command = module_command("api.embedded.model_server", *address, "--threads", str(threads))
    environment = module_environment({**os.environ, "PYTHONUNBUFFERED": "1"})
    child = start_child("the model server", command, log=log, environment=environment, death_signal=signal.SIGKILL)
    try:
        if not child.await_ready(lambda: ready_url(log) is not None, timeout):
            raise LaunchError(f"the model server was not ready within {timeout:.0f} s (log: {log})")
        yield ModelServer(ready_url(log) or "", child)
    finally:
        child.stop(deadline=0.5)


def ready_url(log: Path) -> str | None:
    """Returns the server's URL once its log has the line `ready on http://...`."""
    found = _READY.search(log.read_text(encoding="utf-8", errors="replace"))
    return found.group(1) if found else None


_PROBE_TIMEOUT = 1.0


def find_ollama(base_urls: Sequence[str]) -> str | None:
    """Returns the first of `base_urls` that answers GET /api/version within a second."""
    with httpx.Client(timeout=_PROBE_TIMEOUT, trust_env=False) as client:
        for url in base_urls:
            version = _json(client, "GET", f"{url}/api/version")
            if "version" in version:
                return url
    return None


def first_text_model(base_url: str) -> str | None:
    """Returns the first model in `/api/tags` that generates text."""
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        for model in _json(client, "GET", f"{base_url}/api/tags").get("models", []):
            shown = _json(client, "POST", f"{base_url}/api/show", {"model": model["name"]})
            if generates_text(model, shown):
                return str(model["name"])
    return None


def generates_text(model: dict[str, Any], shown: dict[str, Any]) -> bool:
    """Returns whether a model generates text: by its capabilities, or because it is not a BERT."""
    capabilities = shown.get("capabilities")
    if capabilities is not None:
        return "completion" in capabilities
    return "bert" not in str((model.get("details") or {}).get("family", ""))


def _json(client: httpx.Client, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the JSON object of a response, or {} after any failure."""
    try:
        response = client.request(method, url, json=body)
        value = response.json() if response.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
