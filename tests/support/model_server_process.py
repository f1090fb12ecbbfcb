"""Runs the model server as a process, for tests that need something like Ollama."""

from __future__ import annotations

import re
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "api.embedded.model_server")


@contextmanager
def model_server(*arguments: str, ready_within: float = 60.0, command: Sequence[str] = COMMAND) -> Iterator[str]:
    """Runs `python -m api.embedded.model_server`, or another model server, on a free port and yields its base URL.

    `arguments` are added to the command line; `ready_within` is in seconds.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield _base_url(process, log, ready_within)
        finally:
            _stop(process)


def _base_url(process: subprocess.Popen[str], log: IO[str], ready_within: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(ready_within) else ""
    found = re.match(r"ready on (http://\S+)", line)
    if found is None:
        log.seek(0)
        raise RuntimeError(f"the model server did not become ready: {line}{log.read()}")
    return found[1]


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
