"""Metrics of the requests to one Ollama: the stages of each request, and percentiles of the last ones.

`PoolSnapshot` has the field names of GET /api/connection-pool/metrics.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from api.values import GenerationEnd


class RequestTrace:
    """The stages of one request. Times are seconds since it began; None: not reached."""

    __slots__ = ("_began", "_opening_at", "connect", "first_byte", "opened", "sent", "wait")

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._opening_at = 0.0
        self.wait: float | None = None
        """Seconds until a connection was assigned."""
        self.connect: float | None = None
        """The TCP handshake, and TLS if there is any."""
        self.first_byte: float | None = None
        """Seconds until the head of the response was read, or broke off."""
        self.opened = False
        """The request was given a new connection, which then was established or not."""
        self.sent = False
        """The request began to be written, over a connection new or reused."""

    def assigned(self) -> None:
        """A connection may be used, or opened."""
        self.wait = self.elapsed

    def opening(self) -> None:
        """A new connection is opened."""
        self.opened, self._opening_at = True, self.elapsed

    def connected(self) -> None:
        """The new connection is established."""
        self.connect = self.elapsed - self._opening_at

    def answered(self) -> None:
        """The head of the response was read, or broke off."""
        self.first_byte = self.elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._began

    @property
    def reused(self) -> bool:
        """True if the request used a connection that had served another."""
        return self.sent and not self.opened

    @property
    def went_stale(self) -> bool:
        """True if a connection that broke was reused and had received no byte of the response."""
        return self.reused and self.first_byte is None


RECENT: Final = 1024
"""Number of an endpoint's last requests that its percentiles cover."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of the last `RECENT` requests, in milliseconds; zeros while there are none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """Metrics of one path of Ollama's API. Plain times are medians in milliseconds; `latency_ms` is to the last byte.

    In order: `wait_ms` for a connection, `connect_ms` where a new one was opened, `time_to_first_byte_ms` from the
    request's beginning to the head of the answer, `transfer_ms` from there to the end.
    """

    requests: int
    errors: int
    latency_ms: Percentiles
    connect_ms: float
    time_to_first_byte_ms: float
    wait_ms: float
    transfer_ms: float


@dataclass(frozen=True, slots=True)
class OllamaFigures:
    """Ollama's own figures about its generations since the worker's start. Seconds and tokens are totals.

    `tokens_per_second` covers writing, `prompt_tokens_per_second` reading; 0 before the first generation.
    """

    generations: int = 0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """Metrics of one worker's connections to one Ollama. Counts are since the worker's start.

    Connections opened at start count in `connections_opened`; the probes that open them do not count in `requests`.
    """

    pool_connections: int
    pool_maxsize: int
    max_keepalive_connections: int
    keepalive_expiry: float
    active: int
    idle: int
    waiting: int
    requests: int
    connections_opened: int
    connections_reused: int
    reuse_rate: float
    pool_timeouts: int
    wait_ms: Percentiles
    endpoints: Mapping[str, EndpointSnapshot]
    ollama: OllamaFigures = field(default_factory=OllamaFigures)


class RecentTimes:
    """The last `RECENT` times, added in seconds and reported in milliseconds: 8 KiB, a fifth of a deque of floats."""

    def __init__(self) -> None:
        self._seconds = array("d")
        self._next = 0

    def add(self, seconds: float | None) -> None:
        """Adds a time; ignores None (a stage that was not reached)."""
        if seconds is None:
            return
        if len(self._seconds) < RECENT:
            self._seconds.append(seconds)
        else:
            self._seconds[self._next] = seconds
            self._next = (self._next + 1) % RECENT

    def percentiles(self) -> Percentiles:
        """Nearest-rank percentiles."""
        ordered = sorted(self._seconds)
        if not ordered:
            return Percentiles()
        last = len(ordered) - 1
        return Percentiles(*(round(ordered[round(last * share)] * 1000, 3) for share in (0.50, 0.95, 0.99)))


@dataclass(slots=True)
class _Endpoint:
    requests: int = 0
    errors: int = 0
    latency: RecentTimes = field(default_factory=RecentTimes)
    connect: RecentTimes = field(default_factory=RecentTimes)
    first_byte: RecentTimes = field(default_factory=RecentTimes)
    wait: RecentTimes = field(default_factory=RecentTimes)
    transfer: RecentTimes = field(default_factory=RecentTimes)

    def snapshot(self) -> EndpointSnapshot:
        return EndpointSnapshot(
            requests=self.requests,
            errors=self.errors,
            latency_ms=self.latency.percentiles(),
            connect_ms=self.connect.percentiles().p50,
            time_to_first_byte_ms=self.first_byte.percentiles().p50,
            wait_ms=self.wait.percentiles().p50,
            transfer_ms=self.transfer.percentiles().p50,
        )


class PoolStatistics:
    """Counts finished requests, for itself and for `total`. No I/O; bounded memory."""

    def __init__(self, total: PoolStatistics | None = None) -> None:
        self._total = total
        self._ollama = OllamaFigures()
        self.requests = 0
        self.connections_opened = 0
        self.connections_reused = 0
        self.pool_timeouts = 0
        self._wait = RecentTimes()
        self._endpoints: dict[str, _Endpoint] = {}

    def opened_at_start(self, trace: RequestTrace) -> None:
        """A probe that only opens a connection."""
        self.connections_opened += trace.connect is not None
        if self._total is not None:
            self._total.opened_at_start(trace)

    def generated(self, end: GenerationEnd) -> None:
        """A generation came to its end."""
        before = self._ollama
        self._ollama = OllamaFigures(
            generations=before.generations + 1,
            load_seconds=before.load_seconds + end.load_duration,
            prompt_seconds=before.prompt_seconds + end.prompt_eval_duration,
            generation_seconds=before.generation_seconds + end.eval_duration,
            prompt_tokens=before.prompt_tokens + end.usage.prompt_tokens,
            completion_tokens=before.completion_tokens + end.usage.completion_tokens,
        )
        if self._total is not None:
            self._total.generated(end)

    def ollama(self) -> OllamaFigures:
        """Ollama's own figures, its speeds worked out."""
        totals = self._ollama
        return replace(
            totals,
            load_seconds=round(totals.load_seconds, 6),
            prompt_seconds=round(totals.prompt_seconds, 6),
            generation_seconds=round(totals.generation_seconds, 6),
            prompt_tokens_per_second=_rate(totals.prompt_tokens, totals.prompt_seconds),
            tokens_per_second=_rate(totals.completion_tokens, totals.generation_seconds),
        )

    def finished(self, path: str, trace: RequestTrace, *, failed: bool, pool_timeout: bool) -> None:
        """Counts a request that ended: complete, failed, or left by its caller, which does not count as a failure."""
        self.requests += 1
        self.connections_opened += trace.connect is not None
        self.connections_reused += trace.reused
        self.pool_timeouts += pool_timeout
        waited = trace.elapsed if trace.wait is None else trace.wait
        self._wait.add(waited)
        endpoint = self._endpoints.setdefault(path, _Endpoint())
        endpoint.requests += 1
        endpoint.errors += failed
        endpoint.latency.add(trace.elapsed)
        endpoint.connect.add(trace.connect)
        endpoint.first_byte.add(trace.first_byte)
        endpoint.wait.add(waited)
        endpoint.transfer.add(None if trace.first_byte is None else trace.elapsed - trace.first_byte)
        if self._total is not None:
            self._total.finished(path, trace, failed=failed, pool_timeout=pool_timeout)

    @property
    def reuse_rate(self) -> float:
        """Share of requests that used an open connection; 0 while there are none."""
        return round(self.connections_reused / self.requests, 4) if self.requests else 0.0

    def wait_ms(self) -> Percentiles:
        """Returns the percentiles of recent waits for a connection."""
        return self._wait.percentiles()

    def endpoints(self) -> dict[str, EndpointSnapshot]:
        """Returns the metrics by path, such as `/api/chat`."""
        return {path: endpoint.snapshot() for path, endpoint in self._endpoints.items()}


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 3) if seconds else 0.0
