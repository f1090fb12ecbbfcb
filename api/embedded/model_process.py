"""Starts the embedded model server as a child and waits for its line `ready on http://...`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api.embedded.child_process import ChildProcess, start_child
from api.embedded.errors import LaunchError
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
