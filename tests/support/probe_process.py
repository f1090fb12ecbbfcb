"""Asks one question again and again in a separate process, so that other threads of the test do not delay it.

Usage: python -m tests.support.probe_process URL KEY. Prints a line when it is ready, reads a time of the monotonic
clock from stdin, asks until then, and prints the seconds that each answer took, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

WARM_UP = 20


def main(url: str, key: str) -> None:
    no_keepalive = httpx.Limits(max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, limits=no_keepalive, trust_env=False) as client:
        for _ in range(WARM_UP):
            _probe(client)
        print("ready", flush=True)
        until = float(sys.stdin.readline())
        print(json.dumps([_probe(client) for _ in iter(lambda: time.monotonic() < until, False)]))


def _probe(client: httpx.Client) -> float:
    """Seconds that a question takes whose answer is cached."""
    began = time.monotonic()
    answer = client.post("/query", json={"question": "How long is it?"})
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


class Probe:
    """The process, warmed up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, until: float) -> None:
        """Begins to ask, until this time of the monotonic clock."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{until}\n")
        self._process.stdin.flush()

    def seconds(self) -> list[float]:
        """Returns what each answer took. Waits for the end."""
        assert self._process.stdout is not None
        found: list[float] = json.loads(self._process.stdout.readline())
        return found


@contextmanager
def probing(url: str, key: str) -> Iterator[Probe]:
    """Yields a probe that is ready."""
    command = [sys.executable, "-m", "tests.support.probe_process", url, key]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Probe(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
