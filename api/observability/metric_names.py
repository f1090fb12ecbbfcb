"""Every Prometheus metric of the service, declared once: `metrics.py` makes them, docs/metrics.md lists them.

Figures are of the process that counts them, so that sums over pods are right; the few that are the whole fleet's own
say so, and are to be read with `max`.

The values of the metrics' labels that are known beforehand.

What is declared of one Prometheus metric.

The series of one metric, each looked up once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Stage = Literal["total", "embed", "cache", "retrieve", "generate"]
ConnectionEnd = Literal["silent", "idle", "head", "rest", "unread", "full", "refused"]
LookupResult = Literal["exact", "semantic", "stale", "miss", "unavailable"]
RefreshOutcome = Literal["stored", "not_stored", "failed", "elsewhere", "too_many"]
FlightEvent = Literal["handed_over", "alone", "fenced"]
RerankingOutcome = Literal["reranked", "failed"]
BreakerState = Literal["closed", "open", "half_open"]
BreakerOutcome = Literal["successful", "slow_successful", "failed", "slow_failed", "ignored"]
BulkheadReason = Literal["queue_full", "deadline", "displaced"]


MetricType = Literal["counter", "gauge", "histogram"]
AcrossWorkers = Literal["livesum", "livemax", "livemin", "livemostrecent"]


@dataclass(frozen=True, slots=True, eq=False)
class MetricSpec:
    """One metric, itself and no other (a key that hashes at once). `across`: how a gauge of several workers adds up."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    across: AcrossWorkers = "livesum"
    buckets: tuple[float, ...] = ()


REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STAGE_BUCKETS = (0.00025, 0.0005, *REQUEST_BUCKETS)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

HTTP_REQUEST_DURATION = MetricSpec(
    "ragherd_http_request_duration_seconds",
    "histogram",
    "Time from a request's arrival to the end of its response, by route template.",
    ("method", "route", "status"),
    buckets=REQUEST_BUCKETS,
)
HTTP_REQUESTS_IN_FLIGHT = MetricSpec(
    "ragherd_http_requests_in_flight", "gauge", "Requests whose response has not ended yet."
)
EVENT_LOOP_LAG = MetricSpec(
    "ragherd_event_loop_lag_seconds",
    "histogram",
    "How late the event loop of a worker came to a task that was due, looked at every 100 ms.",
    buckets=LAG_BUCKETS,
)

CONNECTIONS = MetricSpec(
    "ragherd_connections", "gauge", "Connections of clients by what they do (idle, reading, answering).", ("state",)
)
CONNECTIONS_CLOSED = MetricSpec(
    "ragherd_connections_closed_total",
    "counter",
    "Connections that a worker closed by itself, by reason (silent, idle, head, rest, unread: a deadline; "
    "full: to make room; refused: there was none).",
    ("reason",),
)

QUERIES = MetricSpec(
    "ragherd_queries_total",
    "counter",
    "Queries by how the cache took part (hit, miss, stale, bypass, coalesced; error: no answer; left: no client).",
    ("status", "kind"),
)
QUERY_STAGE_DURATION = MetricSpec(
    "ragherd_query_stage_duration_seconds",
    "histogram",
    "Time that an answered query spent in each stage (embed, cache, retrieve, generate) and in all (total).",
    ("stage",),
    buckets=STAGE_BUCKETS,
)
GENERATION_TOKENS = MetricSpec(
    "ragherd_generation_tokens_total",
    "counter",
    "Tokens that the language model read (prompt) and wrote (completion), as Ollama counts them.",
    ("direction",),
)

CACHE_LOOKUPS = MetricSpec(
    "ragherd_cache_lookups_total",
    "counter",
    "Lookups in the semantic cache by result (exact, semantic, stale, miss, unavailable).",
    ("result",),
)
CACHE_GUARD_REJECTIONS = MetricSpec(
    "ragherd_cache_guard_rejections_total",
    "counter",
    "Cached questions near enough to the asked one whose answer a guard kept back, by guard (numbers, symbols, ...).",
    ("guard",),
)
CACHE_LANGUAGE_UNKNOWN = MetricSpec(
    "ragherd_cache_language_unknown_total",
    "counter",
    "Questions that were not compared by meaning: the embedder was not made for their language.",
)
CACHE_REFRESHES = MetricSpec(
    "ragherd_cache_refreshes_total",
    "counter",
    "Expired answers served while they were to be refreshed, by what became of that "
    "(stored, not_stored, failed, elsewhere: another worker does it, too_many).",
    ("outcome",),
)
SINGLE_FLIGHT_EVENTS = MetricSpec(
    "ragherd_single_flight_events_total",
    "counter",
    "Shared generations that lost their leader (handed_over, to this worker), were waited for in vain (alone), "
    "or whose lead passed to another worker unknown to this one (fenced).",
    ("event",),
)
CACHE_STORES = MetricSpec("ragherd_cache_stores_total", "counter", "Answers stored in the semantic cache.")
CACHE_EVICTIONS = MetricSpec(
    "ragherd_cache_evictions_total", "counter", "Entries evicted because the semantic cache was full."
)
CACHE_INVALIDATIONS = MetricSpec(
    "ragherd_semantic_cache_invalidations_total",
    "counter",
    "Entries deleted by operators, by what they asked for (question, entry, source, tenant, all).",
    ("kind",),
)

GROUNDINGS = MetricSpec(
    "ragherd_groundings_total",
    "counter",
    "Searches of the knowledge base for an answer, by what came of them "
    "(grounded, nothing_relevant, no_documents, unavailable).",
    ("outcome",),
)
RERANKING_DURATION = MetricSpec(
    "ragherd_reranking_duration_seconds",
    "histogram",
    "Time that a question's passages took to be re-ranked (reranked), or were waited for in vain (failed: they stay as "
    "they were found).",
    ("outcome",),
    buckets=STAGE_BUCKETS,
)
CITATIONS_REMOVED = MetricSpec(
    "ragherd_citations_removed_total", "counter", "Citations of the language model that pointed to no source."
)
DOCUMENTS_STORED = MetricSpec(
    "ragherd_documents_stored_total", "counter", "Documents, or new revisions of them, put into service."
)
DOCUMENTS_FAILED = MetricSpec(
    "ragherd_documents_failed_total", "counter", "Documents that could not be stored after they were accepted."
)
CHUNKS_NOT_EMBEDDED = MetricSpec(
    "ragherd_chunks_not_embedded_total", "counter", "Chunks of documents whose text the embedder cannot embed."
)
CHUNKS_EMBEDDED = MetricSpec("ragherd_chunks_embedded_total", "counter", "Chunks of documents embedded and written.")
ANSWERS_OUTDATED = MetricSpec(
    "ragherd_answers_outdated_total",
    "counter",
    "Cached answers deleted because a document they used changed (changed), or stale because a new one may change them "
    "(affected).",
    ("reason",),
)

UPSTREAM_FAULTS = MetricSpec(
    "ragherd_upstream_faults_total", "counter", "Calls to Ollama that failed, by fault (api/errors.py).", ("fault",)
)

FAILOVERS = MetricSpec(
    "ragherd_backend_failovers_total",
    "counter",
    "Calls that failed on a backend and went on to another, by the first one's fault.",
    ("backend", "fault"),
)
RETRIES = MetricSpec("ragherd_retries_total", "counter", "Repeated calls that were charged to the budget of retries.")
BACKEND_UP = MetricSpec(
    "ragherd_backend_up",
    "gauge",
    "1 when the last probe of the backend was answered, else 0. The fleet's own figure.",
    ("backend",),
    "livemostrecent",
)
OLLAMA_GENERATIONS = MetricSpec(
    "ragherd_ollama_generations_total", "counter", "Generations that came to their end.", ("backend",)
)
OLLAMA_SECONDS = MetricSpec(
    "ragherd_ollama_seconds_total",
    "counter",
    "Seconds that Ollama spent on loading the model (load), reading (prompt) and writing (generation), as it says.",
    ("backend", "phase"),
)
OLLAMA_TOKENS = MetricSpec(
    "ragherd_ollama_tokens_total",
    "counter",
    "Tokens that the backend read (prompt) and wrote (completion), as it counts them.",
    ("backend", "direction"),
)
OLLAMA_TOKENS_PER_SECOND = MetricSpec(
    "ragherd_ollama_tokens_per_second",
    "gauge",
    "Tokens written in a second of writing, since the start of the worker that was measured last.",
    ("backend",),
    "livemostrecent",
)

BREAKER_STATE = MetricSpec(
    "ragherd_circuitbreaker_state",
    "gauge",
    "1 for the state that the breaker is in (closed, open, half_open), else 0. The fleet's own figure.",
    ("name", "state"),
    "livemostrecent",
)
BREAKER_CALLS = MetricSpec(
    "ragherd_circuitbreaker_calls_total",
    "counter",
    "Admitted calls by outcome (successful, slow_successful, failed, slow_failed, ignored).",
    ("name", "outcome"),
)
BREAKER_NOT_PERMITTED = MetricSpec(
    "ragherd_circuitbreaker_not_permitted_calls_total", "counter", "Calls that the breaker rejected.", ("name",)
)
BREAKER_TRANSITIONS = MetricSpec(
    "ragherd_circuitbreaker_transitions_total",
    "counter",
    "Changes of state, counted once in the fleet: by the worker that caused them.",
    ("name", "from_state", "to_state"),
)
BREAKER_FAILURE_RATE = MetricSpec(
    "ragherd_circuitbreaker_failure_rate",
    "gauge",
    "Failed calls in the window, in percent, as last read. The fleet's own figure.",
    ("name",),
    "livemostrecent",
)
BREAKER_SLOW_CALL_RATE = MetricSpec(
    "ragherd_circuitbreaker_slow_call_rate",
    "gauge",
    "Slow calls in the window, in percent, as last read. The fleet's own figure.",
    ("name",),
    "livemostrecent",
)
BREAKER_STALE_RESULTS = MetricSpec(
    "ragherd_circuitbreaker_stale_results_total",
    "counter",
    "Outcomes of calls that were admitted before the last change of state, and so changed nothing.",
    ("name",),
)
BREAKER_LOST_PROBES = MetricSpec(
    "ragherd_circuitbreaker_lost_probes_total",
    "counter",
    "Half-open permits whose lease ended without an outcome: their holder died.",
    ("name",),
)
BREAKER_STORE_LOCAL = MetricSpec(
    "ragherd_circuitbreaker_store_local",
    "gauge",
    "1 while any worker of the pod has lost Redis and runs a breaker of its own, else 0.",
    ("name",),
    "livemax",
)

BULKHEAD_IN_USE = MetricSpec(
    "ragherd_bulkhead_in_use", "gauge", "Permits held: calls to Ollama that the bulkhead let through.", ("name",)
)
BULKHEAD_WAITING = MetricSpec("ragherd_bulkhead_waiting", "gauge", "Calls that wait for a permit.", ("name",))
BULKHEAD_WAIT = MetricSpec(
    "ragherd_bulkhead_wait_seconds",
    "histogram",
    "Time from asking for a permit to having it, by priority (user, background).",
    ("name", "priority"),
    buckets=STAGE_BUCKETS,
)
BULKHEAD_REJECTED = MetricSpec(
    "ragherd_bulkhead_rejected_total",
    "counter",
    "Calls that got no permit, by reason (queue_full, deadline, displaced).",
    ("name", "reason"),
)
BULKHEAD_STORE_LOCAL = MetricSpec(
    "ragherd_bulkhead_store_local",
    "gauge",
    "1 while any worker of the pod has lost Redis and keeps to its own share of permits, else 0.",
    ("name",),
    "livemax",
)

POOL_CONNECTIONS = MetricSpec(
    "ragherd_pool_connections", "gauge", "Connections to Ollama by state (active, idle).", ("state",)
)
POOL_WAITING = MetricSpec("ragherd_pool_waiting", "gauge", "Requests that wait for a connection to Ollama.")
POOL_OPENED = MetricSpec(
    "ragherd_pool_connections_opened_total", "counter", "Connections to Ollama opened; reuse is requests less these."
)
POOL_REQUESTS = MetricSpec("ragherd_pool_requests_total", "counter", "Requests sent to Ollama through the pool.")
POOL_TIMEOUTS = MetricSpec(
    "ragherd_pool_timeouts_total", "counter", "Requests that found no free connection within CONNECTION_POOL_TIMEOUT."
)

REDIS_UP = MetricSpec(
    "ragherd_redis_up", "gauge", "1 while every worker of the pod reaches Redis, else 0.", across="livemin"
)
BREAKER_REDIS_UP = MetricSpec(
    "ragherd_breaker_redis_up",
    "gauge",
    "The same of BREAKER_REDIS_URL; without it, of REDIS_URL.",
    across="livemin",
)
REDIS_WARNINGS = MetricSpec(
    "ragherd_redis_warnings",
    "gauge",
    "1 for each warning about how Redis is set up (docs/redis.md), by store (main, breaker) and name, else 0.",
    ("store", "warning"),
    across="livemax",
)
REDIS_SHARDS = MetricSpec(
    "ragherd_redis_shards", "gauge", "Shards of Redis that are known; without a cluster 1.", across="livemax"
)
REDIS_SHARDS_UP = MetricSpec(
    "ragherd_redis_shards_up", "gauge", "Shards of Redis that every worker of the pod reaches.", across="livemin"
)
REDIS_ERRORS = MetricSpec(
    "ragherd_redis_errors_total", "counter", "Operations on Redis that failed, by operation.", ("operation",)
)

WORKERS_REPLACED = MetricSpec(
    "ragherd_workers_replaced_total",
    "counter",
    "Workers whose successor has taken over, by reason (memory, reload, requests).",
    ("reason",),
)
BUILD_INFO = MetricSpec(
    "ragherd_build_info", "gauge", "Always 1; the versions are the labels.", ("version", "python_version"), "livemax"
)

ALL_METRICS: tuple[MetricSpec, ...] = tuple(one for one in vars().values() if isinstance(one, MetricSpec))
"""In the order of their declaration."""


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
