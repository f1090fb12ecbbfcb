"""Starts the embedded model server as a child and waits for its line `ready on http://...`.

Is there an Ollama, and which of its models can answer questions?
"""

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
"""What the embedded model server is called wherever it is named."""

STAND_IN_LLM = "smollm2:135m"
STAND_IN_EMBEDDER = "all-minilm"

_READY = re.compile(r"^ready on (http://\S+)\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A running stand-in."""

    url: str
    child: ChildProcess


@contextmanager
def embedded_model_server(log: Path, *, threads: int = 1, timeout: float = 120.0) -> Iterator[ModelServer]:
    """The stand-in on a free loopback port, ready to answer; stopped at the end. Raises `LaunchError`."""
    address = ("--host", "127.0.0.1", "--port", "0")
    command = module_command("api.embedded.model_server", *address, "--threads", str(threads))
    environment = module_environment({**os.environ, "PYTHONUNBUFFERED": "1"})
    child = start_child("the model server", command, log=log, environment=environment, death_signal=signal.SIGKILL)
    try:
        if not child.await_ready(lambda: ready_url(log) is not None, timeout):
            raise LaunchError(f"the model server was not ready within {timeout:.0f} s (its log: {log})")
        yield ModelServer(ready_url(log) or "", child)
    finally:
        child.stop(deadline=0.5)


def ready_url(log: Path) -> str | None:
    """Where the server of this log answers, once it has said so."""
    found = _READY.search(log.read_text(encoding="utf-8", errors="replace"))
    return found.group(1) if found else None


_PROBE_TIMEOUT = 1.0


def find_ollama(base_urls: Sequence[str]) -> str | None:
    """The first of `base_urls` that answers GET /api/version within a second."""
    with httpx.Client(timeout=_PROBE_TIMEOUT, trust_env=False) as client:
        for url in base_urls:
            version = _json(client, "GET", f"{url}/api/version")
            if "version" in version:
                return url
    return None


def first_text_model(base_url: str) -> str | None:
    """The first model that `/api/tags` lists and that generates text."""
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        for model in _json(client, "GET", f"{base_url}/api/tags").get("models", []):
            shown = _json(client, "POST", f"{base_url}/api/show", {"model": model["name"]})
            if generates_text(model, shown):
                return str(model["name"])
    return None


def generates_text(model: dict[str, Any], shown: dict[str, Any]) -> bool:
    """Whether a model of /api/tags, shown by /api/show, is one for text: Ollama says so, or it is no BERT."""
    capabilities = shown.get("capabilities")
    if capabilities is not None:
        return "completion" in capabilities
    return "bert" not in str((model.get("details") or {}).get("family", ""))


def _json(client: httpx.Client, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object of an answer; empty for a failure of any kind, which to a probe is only "no"."""
    try:
        response = client.request(method, url, json=body)
        value = response.json() if response.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
