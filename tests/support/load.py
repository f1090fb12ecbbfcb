"""Constant load from several clients that records every failure.

Requests are not retried: a closed connection is a failure, as are a status other than 200 and a failed assertion of the
request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

Request = Callable[[httpx.Client], httpx.Response]


@dataclass
class Load:
    """The clients' responses so far."""

    answered: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.answered} answered, {len(self.failures)} failed, the slowest took {self.slowest:.2f} s"


@contextmanager
def constant_load(
    request: Request, clients: int = 4, *, keep_alive: bool = True, timeout: float = 30
) -> Iterator[Load]:
    """Runs clients until the context ends. Each sends its next request after the previous response."""
    load, done, lock = Load(), threading.Event(), threading.Lock()
    limits = httpx.Limits(max_keepalive_connections=None if keep_alive else 0)

    def ask(client: httpx.Client) -> str | None:
        try:
            response = request(client)
        except (httpx.HTTPError, AssertionError) as error:
            return repr(error)
        return None if response.status_code == 200 else f"{response.status_code} {response.text}"

    def go_on() -> None:
        with httpx.Client(trust_env=False, verify=False, timeout=timeout, limits=limits) as client:
            while not done.is_set():
                began = time.monotonic()
                failure = ask(client)
                with lock:
                    load.answered += failure is None
                    load.slowest = max(load.slowest, time.monotonic() - began)
                    load.failures.extend([failure] if failure else [])

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()
