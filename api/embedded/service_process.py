"""Starts the service as a child (`ragherd serve`), and waits until it is ready."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from api.embedded.child_process import ChildProcess, last_line, start_child
from api.embedded.errors import LaunchError
from api.module_command import module_command, module_environment

STOP_DEADLINE = 3.0
"""Seconds from SIGTERM to SIGKILL: a person who pressed Ctrl-C waits."""


@contextmanager
def running_service(
    url: str, environment: Mapping[str, str], log: Path, *, timeout: float = 60.0
) -> Iterator[ChildProcess]:
    """The service with `environment`, ready at `url`; stopped at the end. Raises `LaunchError`."""
    command = module_command("api.cli.main", "serve")
    environment = module_environment(environment)
    child = start_child("the service", command, environment=environment, log=log, explain=first_error)
    try:
        with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as client:
            if not child.await_ready(lambda: _is_ready(client), timeout):
                raise LaunchError(f"the service was not ready within {timeout:.0f} s (its log: {log})")
        yield child
    finally:
        child.stop(STOP_DEADLINE)


def first_error(log: str) -> str:
    """Why the service ended: the first error of its JSON log, of a traceback only the last line; else the last line."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in {"error", "critical"}:
            return last_line(str(entry.get("exception") or entry.get("event")))
    return last_line(log)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx.HTTPError:
        return False
