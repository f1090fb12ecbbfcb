"""Sends requests over several connections and measures latency, throughput and its own CPU time.

It runs as a process of its own, so that its CPU time is not that of a server. Plain sockets and the parser that uvicorn
has, because a full HTTP client would take more CPU than most servers here.

`Load.rate` None is a closed load: a connection sends its next request when it has the answer. With a rate the load is
open: requests are due at fixed times, and a request that waits for a connection is late, which counts as latency.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

from scripts.benchmarks.figures import percentile

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 60.0
"""Seconds that the last answers may take after the load has ended."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to one URL. Without `seconds`, each body is sent once; with it, they recur until the time is over."""

    url: str
    bodies: list[str]
    connections: int = 32
    seconds: float | None = None
    rate: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    expect: str = ""
    """What each answer must contain. Another answer is a failure."""
    apart: str = ""
    """A part of the answer's `timings_ms` that is taken off the latency."""

    def encoded(self) -> list[bytes]:
        """Returns the requests as bytes."""
        parts = urlsplit(self.url)
        lines = {"Host": parts.netloc, "Content-Type": "application/json", **self.headers}
        head = f"POST {parts.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        found = []
        for body in self.bodies:
            data = body.encode()
            found.append(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return found


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, request: bytes, since: float) -> None:
        self._since = since
        self._pieces.clear()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._run.answered(self, self._since, self._parser.get_status_code(), b"".join(self._pieces))

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost(error)

    def close(self) -> None:
        self._transport.close()


class _Run:
    def __init__(self, load: Load) -> None:
        self._load = load
        requests = load.encoded()
        self._requests: Iterator[bytes] = iter(requests) if load.seconds is None else itertools.cycle(requests)
        self._expect = load.expect.encode()
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._idle: list[_Connection] = []
        self._milliseconds: list[float] = []
        self._failures: list[str] = []
        self._is_due_later = False
        self._over = False
        self._done = asyncio.Event()
        self._left = 0

    async def measure(self) -> dict[str, Any]:
        loop, parts = asyncio.get_running_loop(), urlsplit(self._load.url)
        opened = [
            (await loop.create_connection(lambda: _Connection(self), parts.hostname or "", parts.port or 80))[1]
            for _ in range(self._load.connections)
        ]
        used, began = time.process_time(), time.perf_counter()
        self._ends = began + (self._load.seconds or float("inf"))
        if self._load.rate is None:
            for connection in opened:
                self._send_next(connection)
        else:
            self._idle = list(opened)
            await self._arrivals(self._load.rate, began)
        await asyncio.wait_for(self._done.wait(), (self._load.seconds or 0) + PATIENCE)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        self._over = True
        for connection in opened:
            connection.close()
        return self._result(seconds, cpu)

    def _send_next(self, connection: _Connection) -> None:
        """Sends the next request of a closed load, or ends this connection's part."""
        now = time.perf_counter()
        request = next(self._requests, None) if now < self._ends else None
        if request is None:
            if not self._left:
                self._done.set()
            return
        self._left += 1
        connection.send(request, now)

    async def _arrivals(self, rate: float, began: float) -> None:
        """Sends the requests of an open load at their times."""
        self._is_due_later = True
        for number in itertools.count():
            due = began + number / rate
            if due >= self._ends:
                break
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._left += 1
            request = next(self._requests)
            if self._idle:
                self._idle.pop().send(request, due)
            else:
                self._waiting.append((request, due))
        self._is_due_later = False
        if not self._left:
            self._done.set()

    def answered(self, connection: _Connection, since: float, status: int, body: bytes) -> None:
        """Notes one answer and goes on."""
        self._left -= 1
        if status != 200 or self._expect not in body:
            self._failures.append(f"{status} {body[:300]!r}")
        apart = json.loads(body)["timings_ms"][self._load.apart] if self._load.apart and status == 200 else 0.0
        self._milliseconds.append((time.perf_counter() - since) * 1000 - apart)
        if self._load.rate is None:
            self._send_next(connection)
        elif self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)
            if not self._left and not self._is_due_later:
                self._done.set()

    def lost(self, error: Exception | None) -> None:
        """A server that closes a connection in the middle of a load has failed."""
        if not self._over:
            self._failures.append(f"the connection was closed: {error}")
            self._done.set()

    def _result(self, seconds: float, cpu: float) -> dict[str, Any]:
        ordered, count = sorted(self._milliseconds), len(self._milliseconds)
        return {
            "requests": count,
            "failed": len(self._failures),
            "failures": self._failures[:3],
            "seconds": seconds,
            "rate": count / seconds,
            "p50_ms": percentile(ordered, 0.5) if ordered else 0.0,
            "p99_ms": percentile(ordered, 0.99) if ordered else 0.0,
            "load_us": cpu * 1e6 / max(1, count),
        }


class LoadFailed(Exception):
    """The server did not answer as expected, so there is nothing to measure."""


def loaded(load: Load) -> dict[str, float]:
    """Runs a load in another process. Returns its figures. Raises `LoadFailed` if any request failed."""
    command = [sys.executable, "-m", "scripts.benchmarks.load"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LoadFailed(f"{load.url}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    failures = found.pop("failures")
    if found.pop("failed"):
        raise LoadFailed(f"{load.url}: {failures}")
    return found


def main() -> None:
    import uvloop

    load = Load(**json.load(sys.stdin))
    print(json.dumps(uvloop.run(_Run(load).measure())))


if __name__ == "__main__":
    main()
