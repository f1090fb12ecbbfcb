"""Runs the stub as a separate process, for tests with several processes. Tests control it over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]


class StubProcess:
    """Created by `stub_process`. Methods return after the stub has applied the change."""

    def __init__(self, base_url: str, control_url: str) -> None:
        self.base_url = base_url
        self.control_url = control_url

    def behaviour(self, mode: str = "ok", **fields: Any) -> None:
        """Sets the behavior, like `StubOllama.behaviour`, but including "refuse". Fields are those of `Behaviour`."""
        self._ask("/stub/behaviour", {"mode": mode, **fields})

    def break_connections(self) -> None:
        """Closes every open connection. The listener stays open."""
        self._ask("/stub/break", {})

    @property
    def stats(self) -> dict[str, Any]:
        """Returns the counts, as `StubOllama.stats`."""
        return self._ask("/stub/stats", None)

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.control_url + path, data), timeout=5) as answer:
            stats: dict[str, Any] = json.load(answer)
            return stats


@contextmanager
def stub_process(port: int = 0, host: str = "127.0.0.1", before: Sequence[str] = ()) -> Iterator[StubProcess]:
    """Starts the stub and waits until it listens; ends it afterwards.

    The stub also ends if the test's process dies, because its stdin closes. `before`: words that precede the command,
    for example to start it through another program.
    """
    command = [
        *before,
        sys.executable,
        "-m",
        "tests.stub_ollama",
        "--host",
        host,
        "--port",
        str(port),
        "--until-stdin-closes",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield StubProcess(**json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(timeout=10)
