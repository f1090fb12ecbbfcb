"""Counts and times of one worker's calls to Ollama, in the field names of GET /api/connection-pool/metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from api.ollama.deadlines import RequestTrace
from api.values import GenerationEnd

RECENT: Final = 1024
"""How many of an endpoint's last requests its times are taken from."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of the last `RECENT` requests, in milliseconds; zeros while there are none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One path of Ollama's API. Plain times are medians in milliseconds, `latency_ms` is until the last byte.

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
    """What Ollama says of its own generations, since the worker's start. Seconds and tokens are totals.

    `tokens_per_second` is of writing, `prompt_tokens_per_second` of reading; 0 while there is nothing to divide.
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
    """One worker's connections to one Ollama, the contract's fields one to one. Counts are since the worker's start.

    Connections opened at start count in `connections_opened`; the probes that open them are no `requests`.
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
    """The last `RECENT` times, given in seconds, read in milliseconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float | None) -> None:
        """Adds a time; None (a stage that was not reached) is left out."""
        if seconds is not None:
            self._seconds.append(seconds)

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
    """Told of every finished request; no I/O, bounded memory. What it is told, `total` is told too."""

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
        """A request ended: complete, failed, or left by its caller (which is no failure)."""
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
        """The share of requests that went over a connection already open; 0 while there are none."""
        return round(self.connections_reused / self.requests, 4) if self.requests else 0.0

    def wait_ms(self) -> Percentiles:
        """How long recent requests waited for a connection."""
        return self._wait.percentiles()

    def endpoints(self) -> dict[str, EndpointSnapshot]:
        """By path, such as `/api/chat`."""
        return {path: endpoint.snapshot() for path, endpoint in self._endpoints.items()}


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 3) if seconds else 0.0
