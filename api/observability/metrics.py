"""The service's Prometheus metrics, in the words of the domain. One `Metrics` a worker, made by wiring.

Under gunicorn prometheus_client runs in multiprocess mode: each worker counts in files of PROMETHEUS_MULTIPROC_DIR
and whoever is scraped adds them up. Counting is a dictionary look-up and a write to memory; none of these methods
does I/O that waits, but for `exposition`.

The metrics of the circuit breakers: a part of `Metrics`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from api import __version__
from api.errors import UpstreamFault
from api.observability import metric_names as names
from api.observability.metric_names import (
    BreakerOutcome,
    BreakerState,
    ConnectionEnd,
    FlightEvent,
    LookupResult,
    MetricSpec,
    RerankingOutcome,
    Stage,
)
from api.observability.worker_files import WorkerFilesCollector
from api.ports.cache import StoreWarning
from api.ports.telemetry import BulkheadReason, RefreshOutcome
from api.values import CacheKind, CacheStatus, Usage


class MetricFamily(dict[tuple[str, ...], Any]):
    """The series of one metric by their label values: `labels()` is slow, so each is asked for once."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        super().__init__()
        self._metric = _make(spec, registry)

    def __missing__(self, values: tuple[str, ...]) -> Any:
        series = self[values] = self._metric.labels(*values) if values else self._metric
        return series

    def begin(self, *values: str) -> None:
        """Shows a series at zero before it is first used: a rate needs a zero to rise from."""
        self[values]


def _make(spec: MetricSpec, registry: CollectorRegistry) -> Any:
    if spec.type == "counter":
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.type == "gauge":
        return Gauge(spec.name, spec.help, spec.labels, registry=registry, multiprocess_mode=spec.across)
    return Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)


class BreakerFamilies:
    """Each breaker is a value of the label `name`."""

    def __init__(self, families: Mapping[MetricSpec, MetricFamily]) -> None:
        self._families = families

    def known(self, name: str) -> None:
        """A breaker exists: its counters begin at zero. Its state is not known yet."""
        for outcome in get_args(BreakerOutcome):
            self._families[names.BREAKER_CALLS].begin(name, outcome)
        for before, after in permutations(get_args(BreakerState), 2):
            self._families[names.BREAKER_TRANSITIONS].begin(name, before, after)
        for spec in (names.BREAKER_NOT_PERMITTED, names.BREAKER_STALE_RESULTS, names.BREAKER_LOST_PROBES):
            self._families[spec].begin(name)
        self.store(name, local=False)

    def state(self, name: str, state: BreakerState) -> None:
        """The breaker is in this state. The pod shows what the last worker to learn of it says."""
        for other in get_args(BreakerState):
            self._families[names.BREAKER_STATE][name, other].set(float(other == state))

    def changed(self, name: str, before: BreakerState, after: BreakerState) -> None:
        """This worker caused a change of state."""
        self._families[names.BREAKER_TRANSITIONS][name, before, after].inc()

    def call(self, name: str, outcome: BreakerOutcome) -> None:
        """A call of this worker ended."""
        self._families[names.BREAKER_CALLS][name, outcome].inc()

    def rejected(self, name: str) -> None:
        """A call of this worker was not permitted."""
        self._families[names.BREAKER_NOT_PERMITTED][(name,)].inc()

    def rates(self, name: str, *, failure: float, slow: float) -> None:
        """The rates of the window, in percent, as just read."""
        self._families[names.BREAKER_FAILURE_RATE][(name,)].set(failure)
        self._families[names.BREAKER_SLOW_CALL_RATE][(name,)].set(slow)

    def stale_results(self, name: str, count: int = 1) -> None:
        """Outcomes of this worker came after their epoch had ended."""
        self._families[names.BREAKER_STALE_RESULTS][(name,)].inc(count)

    def lost_probes(self, name: str, count: int = 1) -> None:
        """This worker found permits whose holder is gone."""
        self._families[names.BREAKER_LOST_PROBES][(name,)].inc(count)

    def store(self, name: str, *, local: bool) -> None:
        """Whether this worker goes on without the shared store."""
        self._families[names.BREAKER_STORE_LOCAL][(name,)].set(float(local))


@dataclass(frozen=True, slots=True)
class OllamaGrowth:
    """One backend's generations between two measurements, by phase and direction; the speed is a mean."""

    generations: int
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]
    tokens_per_second: float


class Metrics:
    """Counts what one worker does. Without labels a series exists from the start; with, from its first use.

    `breakers`: what its circuit breakers do.
    """

    def __init__(self, registry: CollectorRegistry | None = None, version: str = __version__) -> None:
        self._registry = registry or CollectorRegistry()
        self._families = {spec: MetricFamily(spec, self._registry) for spec in names.ALL_METRICS}
        self.breakers = BreakerFamilies(self._families)
        self._requests = self._families[names.HTTP_REQUEST_DURATION]
        self._in_flight = self._families[names.HTTP_REQUESTS_IN_FLIGHT][()]
        self._queries = self._families[names.QUERIES]
        self._stages = self._families[names.QUERY_STAGE_DURATION]
        self._lag = self._families[names.EVENT_LOOP_LAG][()]
        self._families[names.BUILD_INFO][version, platform.python_version()].set(1)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        for reason in get_args(ConnectionEnd):
            self._families[names.CONNECTIONS_CLOSED].begin(reason)
        for result in get_args(LookupResult):
            self._families[names.CACHE_LOOKUPS].begin(result)
        for fault in UpstreamFault:
            self._families[names.UPSTREAM_FAULTS].begin(fault.value)
        for kind in ("exact", "semantic"):
            self._queries.begin(CacheStatus.HIT.value, kind)
        for outcome in get_args(RefreshOutcome):
            self._families[names.CACHE_REFRESHES].begin(outcome)
        for event in get_args(FlightEvent):
            self._families[names.SINGLE_FLIGHT_EVENTS].begin(event)
        for status in (CacheStatus.COALESCED.value, CacheStatus.MISS.value, CacheStatus.BYPASS.value, "error", "left"):
            self._queries.begin(status, "none")

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def request_began(self) -> None:
        """A request arrived."""
        self._in_flight.inc()

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """The response to it ended, or was given up. `route` is the template of the route, never the path."""
        self._in_flight.dec()
        self._requests[method, route, str(status)].observe(seconds)

    def loop_was_late(self, seconds: float) -> None:
        """The event loop came to what was due so much later."""
        self._lag.observe(seconds)

    def connections_are(self, counts: Mapping[str, int]) -> None:
        """This worker's connections by state as they stand: on a tick rather than at every change."""
        for state, count in counts.items():
            self._families[names.CONNECTIONS][(state,)].set(count)

    def connection_closed(self, reason: ConnectionEnd) -> None:
        """The worker closed a connection by itself."""
        self._families[names.CONNECTIONS_CLOSED][(reason,)].inc()

    # -- queries ------------------------------------------------------------------------------------------------------

    def query_answered(self, status: CacheStatus, kind: CacheKind | None, timings: Mapping[Stage, float]) -> None:
        """A query was answered. `timings`: the seconds spent in each; a stage that was not needed is left out."""
        self._queries[status.value, kind or "none"].inc()
        for stage, seconds in timings.items():
            self._stages[(stage,)].observe(seconds)

    def query_failed(self) -> None:
        """A query ended without an answer."""
        self._queries["error", "none"].inc()

    def query_left(self) -> None:
        """The caller left before the answer was there."""
        self._queries["left", "none"].inc()

    def generated(self, usage: Usage) -> None:
        """The language model answered."""
        self._families[names.GENERATION_TOKENS][("prompt",)].inc(usage.prompt_tokens)
        self._families[names.GENERATION_TOKENS][("completion",)].inc(usage.completion_tokens)

    def cache_looked_up(self, result: LookupResult) -> None:
        """The semantic cache was asked."""
        self._families[names.CACHE_LOOKUPS][(result,)].inc()

    def cache_stored(self) -> None:
        """An answer was stored."""
        self._families[names.CACHE_STORES][()].inc()

    def cache_evicted(self, count: int) -> None:
        """Entries were evicted."""
        self._families[names.CACHE_EVICTIONS][()].inc(count)

    def guard_rejected(self, guard: str) -> None:
        """A guard kept a cached answer from being served."""
        self._families[names.CACHE_GUARD_REJECTIONS][(guard,)].inc()

    def language_unknown(self) -> None:
        """A question is in a language that the embedder was not made for."""
        self._families[names.CACHE_LANGUAGE_UNKNOWN][()].inc()

    def refreshed(self, outcome: RefreshOutcome) -> None:
        """An expired answer was served and to be refreshed."""
        self._families[names.CACHE_REFRESHES][(outcome,)].inc()

    def flight(self, event: FlightEvent) -> None:
        """A shared generation took an unusual turn."""
        self._families[names.SINGLE_FLIGHT_EVENTS][(event,)].inc()

    def cache_invalidated(self, kind: str, count: int) -> None:
        """Entries were deleted by an operator."""
        self._families[names.CACHE_INVALIDATIONS][(kind,)].inc(count)

    def grounded(self, outcome: str) -> None:
        """The knowledge base was searched for an answer."""
        self._families[names.GROUNDINGS][(outcome,)].inc()

    def reranking_known(self) -> None:
        """There is a re-ranker: its series begin at zero."""
        for outcome in get_args(RerankingOutcome):
            self._families[names.RERANKING_DURATION].begin(outcome)

    def reranked(self, outcome: RerankingOutcome, seconds: float) -> None:
        """The re-ranker was asked about a question's passages."""
        self._families[names.RERANKING_DURATION][(outcome,)].observe(seconds)

    def citations_removed(self, count: int) -> None:
        """An answer cited what is no source."""
        self._families[names.CITATIONS_REMOVED][()].inc(count)

    def document_stored(self) -> None:
        """A revision serves."""
        self._families[names.DOCUMENTS_STORED][()].inc()

    def document_failed(self) -> None:
        """A document could not be stored."""
        self._families[names.DOCUMENTS_FAILED][()].inc()

    def chunks_embedded(self, count: int) -> None:
        """Chunks were written."""
        self._families[names.CHUNKS_EMBEDDED][()].inc(count)

    def chunk_not_embedded(self) -> None:
        """A chunk is found by its words alone."""
        self._families[names.CHUNKS_NOT_EMBEDDED][()].inc()

    def answers_outdated(self, reason: str, count: int) -> None:
        """Documents changed under cached answers."""
        self._families[names.ANSWERS_OUTDATED][(reason,)].inc(count)

    def upstream_failed(self, fault: UpstreamFault) -> None:
        """A call to Ollama failed."""
        self._families[names.UPSTREAM_FAULTS][(fault.value,)].inc()

    def failed_over(self, backend: str, fault: UpstreamFault) -> None:
        """A call failed on `backend` and went on to another."""
        self._families[names.FAILOVERS][backend, fault.value].inc()

    def retried(self, count: int) -> None:
        """Calls were repeated."""
        self._families[names.RETRIES][()].inc(count)

    def backend_is(self, backend: str, *, up: bool) -> None:
        """What the last probe found."""
        self._families[names.BACKEND_UP][(backend,)].set(float(up))

    def ollama_worked(self, backend: str, grown: OllamaGrowth) -> None:
        """What a backend did since the last measurement."""
        self._families[names.OLLAMA_GENERATIONS][(backend,)].inc(grown.generations)
        for phase, seconds in grown.seconds.items():
            self._families[names.OLLAMA_SECONDS][backend, phase].inc(seconds)
        for direction, tokens in grown.tokens.items():
            self._families[names.OLLAMA_TOKENS][backend, direction].inc(tokens)
        self._families[names.OLLAMA_TOKENS_PER_SECOND][(backend,)].set(grown.tokens_per_second)

    # -- bulkhead -----------------------------------------------------------------------------------------------------

    def bulkhead_known(self, name: str) -> None:
        """A bulkhead exists: its counters begin at zero."""
        for reason in get_args(BulkheadReason):
            self._families[names.BULKHEAD_REJECTED].begin(name, reason)
        self.bulkhead_is(name, in_use=0, waiting=0, local=False)

    def bulkhead_is(self, name: str, *, in_use: int, waiting: int, local: bool) -> None:
        """This worker's part of the bulkhead as it stands: on a tick rather than at every call."""
        self._families[names.BULKHEAD_IN_USE][(name,)].set(in_use)
        self._families[names.BULKHEAD_WAITING][(name,)].set(waiting)
        self._families[names.BULKHEAD_STORE_LOCAL][(name,)].set(float(local))

    def bulkhead_admitted(self, name: str, priority: str, seconds: float) -> None:
        """A call got its permit after so many seconds."""
        self._families[names.BULKHEAD_WAIT][name, priority].observe(seconds)

    def bulkhead_rejected(self, name: str, reason: BulkheadReason) -> None:
        """A call got none."""
        self._families[names.BULKHEAD_REJECTED][name, reason].inc()

    # -- connections --------------------------------------------------------------------------------------------------

    def pool_is(self, *, active: int, idle: int, waiting: int) -> None:
        """The worker's pool as it stands: on a tick rather than at every request."""
        self._families[names.POOL_CONNECTIONS][("active",)].set(active)
        self._families[names.POOL_CONNECTIONS][("idle",)].set(idle)
        self._families[names.POOL_WAITING][()].set(waiting)

    def pool_opened(self, count: int = 1) -> None:
        """Connections to Ollama were opened."""
        self._families[names.POOL_OPENED][()].inc(count)

    def pool_request(self, count: int = 1) -> None:
        """Requests went through the pool."""
        self._families[names.POOL_REQUESTS][()].inc(count)

    def pool_timeout(self, count: int = 1) -> None:
        """Requests found no free connection in time."""
        self._families[names.POOL_TIMEOUTS][()].inc(count)

    def redis_is(self, *, up: bool, breaker_up: bool) -> None:
        """Whether this worker reaches Redis, and the one that its breakers are kept in."""
        self._families[names.REDIS_UP][()].set(float(up))
        self._families[names.BREAKER_REDIS_UP][()].set(float(breaker_up))

    def redis_warnings(self, warnings: Collection[StoreWarning]) -> None:
        """What is to be said of Redis now; what was said before and is not any more is 0."""
        now = {(warning.store, warning.name) for warning in warnings}
        family = self._families[names.REDIS_WARNINGS]
        for series in now | set(family):
            family[series].set(float(series in now))

    def redis_shards_are(self, up: int, known: int) -> None:
        """How many servers of Redis hold the memory of the fleet, and how many of them this worker reaches."""
        self._families[names.REDIS_SHARDS_UP][()].set(up)
        self._families[names.REDIS_SHARDS][()].set(known)

    def redis_failed(self, operation: str) -> None:
        """An operation on Redis failed. `operation` is one of a few names, never a key."""
        self._families[names.REDIS_ERRORS][(operation,)].inc()

    # -- for scrapes --------------------------------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type; of every worker of the pod in multiprocess mode.

        Reads files and takes milliseconds: call it in a thread.
        """
        encode, content_type = choose_encoder(accept)
        body: bytes = encode(self._to_expose())
        return body, content_type

    def _to_expose(self) -> CollectorRegistry:
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return self._registry
        every_worker = CollectorRegistry()
        WorkerFilesCollector(every_worker)
        return every_worker
