"""Every Prometheus metric of the service, declared once. `metrics.py` creates them.

Each process counts for itself, so sums over pods are right. A metric that has the same value in every pod says
"Fleet-wide"; read it with `max`. After a change run `python -m scripts.generate_docs`, which writes docs/metrics.md.

The master of gunicorn imports this file before PROMETHEUS_MULTIPROC_DIR is set, so it must not import
prometheus_client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["total", "embed", "cache", "retrieve", "generate"]
ConnectionEnd = Literal["silent", "idle", "head", "rest", "unread", "full", "refused"]
LookupResult = Literal["exact", "semantic", "stale", "miss", "unavailable"]
FlightEvent = Literal["handed_over", "alone", "fenced"]
QuarantineChange = Literal["quarantined", "released"]
RerankingOutcome = Literal["reranked", "failed"]
VerifierOutcome = Literal["scored", "failed"]
SpanOutcome = Literal["queued", "exported", "failed"]
BreakerState = Literal["closed", "open", "half_open"]
BreakerOutcome = Literal["successful", "slow_successful", "failed", "slow_failed", "ignored"]


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
    "Time to the end of the response.",
    ("method", "route", "status"),
    buckets=REQUEST_BUCKETS,
)
HTTP_REQUESTS_IN_FLIGHT = MetricSpec(
    "ragherd_http_requests_in_flight", "gauge", "Requests whose response has not ended, sampled every 100 ms."
)
EVENT_LOOP_LAG = MetricSpec(
    "ragherd_event_loop_lag_seconds",
    "histogram",
    "Delay of a worker's event loop, sampled every 100 ms.",
    buckets=LAG_BUCKETS,
)
EVENT_LOOP_TASKS = MetricSpec(
    "ragherd_event_loop_tasks", "gauge", "Tasks of the workers' event loops that have not ended, sampled every 5 s."
)

CONNECTIONS = MetricSpec(
    "ragherd_connections", "gauge", "Client connections by state (idle, reading, answering).", ("state",)
)
CONNECTIONS_CLOSED = MetricSpec(
    "ragherd_connections_closed_total",
    "counter",
    "Client connections that a worker closed, by reason.",
    ("reason",),
)

QUERIES = MetricSpec(
    "ragherd_queries_total",
    "counter",
    "Queries by cache status (also error and left) and kind.",
    ("status", "kind"),
)
QUERY_STAGE_DURATION = MetricSpec(
    "ragherd_query_stage_duration_seconds",
    "histogram",
    "Time of answered queries by stage, and in total.",
    ("stage",),
    buckets=STAGE_BUCKETS,
)
GENERATION_TOKENS = MetricSpec(
    "ragherd_generation_tokens_total",
    "counter",
    "Tokens of the prompt and of the completion.",
    ("direction",),
)

MCP_TOOL_CALLS = MetricSpec(
    "ragherd_mcp_tool_calls_total",
    "counter",
    "Calls of tools of `/mcp`, by outcome.",
    ("tool", "outcome"),
)

VARIANT_QUERIES = MetricSpec(
    "ragherd_variant_queries_total",
    "counter",
    "A variant's queries.",
    ("experiment", "variant", "status", "kind"),
)
VARIANT_QUERY_DURATION = MetricSpec(
    "ragherd_variant_query_duration_seconds",
    "histogram",
    "Time of a variant's answers.",
    ("experiment", "variant"),
    buckets=STAGE_BUCKETS,
)
VARIANT_FEEDBACK = MetricSpec(
    "ragherd_variant_feedback_total",
    "counter",
    "Votes on a variant's answers.",
    ("experiment", "variant", "verdict"),
)
VARIANT_LABELS = MetricSpec(
    "ragherd_variant_labels_total",
    "counter",
    "A variant's shadow calls by verdict.",
    ("experiment", "variant", "verdict"),
)

CACHE_LOOKUPS = MetricSpec(
    "ragherd_cache_lookups_total",
    "counter",
    "Look-ups in the semantic cache by result.",
    ("result",),
)
CACHE_NEAR_HITS = MetricSpec("ragherd_cache_near_hits_total", "counter", "Exact hits from a worker's own copies.")
CACHE_NEAR_BYTES = MetricSpec("ragherd_cache_near_bytes", "gauge", "Estimated memory of the workers' own copies.")
CACHE_NEAR_WORKERS = MetricSpec(
    "ragherd_cache_near_workers", "gauge", "Workers that Redis tells of changed entries, so that they can use copies."
)
CACHE_GUARD_REJECTIONS = MetricSpec(
    "ragherd_cache_guard_rejections_total",
    "counter",
    "Near cached questions that a guard rejected, by guard.",
    ("guard",),
)
CACHE_GROUNDED_CHECKS = MetricSpec(
    "ragherd_cache_grounded_checks_total",
    "counter",
    "Grounded checks of cached answers, by outcome.",
    ("outcome",),
)
CACHE_LANGUAGE_UNKNOWN = MetricSpec(
    "ragherd_cache_language_unknown_total",
    "counter",
    "Questions in a language that the embedder does not support.",
)
CACHE_REFRESHES = MetricSpec(
    "ragherd_cache_refreshes_total",
    "counter",
    "Refreshes of expired answers that were served, by outcome.",
    ("outcome",),
)
CACHE_LABELS = MetricSpec(
    "ragherd_cache_labels_total",
    "counter",
    "Labels of cached answers, by source and verdict.",
    ("source", "verdict"),
)
CACHE_LABELS_DROPPED = MetricSpec(
    "ragherd_cache_labels_dropped_total",
    "counter",
    "Labels that were not written, by reason.",
    ("reason",),
)
CACHE_SHADOW_CALLS = MetricSpec(
    "ragherd_cache_shadow_calls_total",
    "counter",
    "Sampled hits to generate again, by outcome.",
    ("outcome",),
)
SINGLE_FLIGHT_EVENTS = MetricSpec(
    "ragherd_single_flight_events_total",
    "counter",
    "Shared generations that went wrong, by event.",
    ("event",),
)
CACHE_STORES = MetricSpec("ragherd_cache_stores_total", "counter", "Answers stored in the semantic cache.")
CACHE_EVICTIONS = MetricSpec(
    "ragherd_cache_evictions_total", "counter", "Entries evicted because the semantic cache was full."
)
CACHE_INVALIDATIONS = MetricSpec(
    "ragherd_semantic_cache_invalidations_total",
    "counter",
    "Entries deleted by admins, by parameter.",
    ("kind",),
)
CACHE_FALSE_HIT_RATE = MetricSpec(
    "ragherd_cache_false_hit_rate",
    "gauge",
    "Share of wrong answers from the cache. Fleet-wide.",
    ("kind", "bound"),
    "livemostrecent",
)
CACHE_FALSE_HIT_SAMPLES = MetricSpec(
    "ragherd_cache_false_hit_samples",
    "gauge",
    "Labels behind that share. Fleet-wide.",
    ("kind",),
    "livemostrecent",
)
CACHE_TARGET_ERROR = MetricSpec(
    "ragherd_cache_target_error", "gauge", "Highest accepted share at this level. Fleet-wide.", across="livemostrecent"
)
CACHE_TIGHTENED = MetricSpec(
    "ragherd_cache_tightened",
    "gauge",
    "Level of tightening because of wrong answers, 0 to 4. Fleet-wide.",
    across="livemostrecent",
)
CACHE_DECISIONS = MetricSpec(
    "ragherd_cache_policy_decisions_total",
    "counter",
    "Decisions by outcome, except of guarded.",
    ("policy", "outcome"),
)
CACHE_QUALITY_CHANGES = MetricSpec(
    "ragherd_cache_quality_changes_total",
    "counter",
    "Changes of the level or of the learned model, by kind.",
    ("change",),
)
FEEDBACK = MetricSpec("ragherd_feedback_total", "counter", "Votes on answers by verdict.", ("verdict",))
FEEDBACK_LEFT_OUT = MetricSpec(
    "ragherd_feedback_left_out_total",
    "counter",
    "Answers beyond the limit per minute, which cannot be judged.",
)
UNDECRYPTABLE = MetricSpec(
    "ragherd_undecryptable_texts_total",
    "counter",
    "Texts in Redis that no key of ENCRYPTION_KEYS decrypts.",
)
CACHE_QUARANTINES = MetricSpec(
    "ragherd_cache_quarantines_total",
    "counter",
    "Entries that feedback quarantined or released.",
    ("change",),
)

GROUNDINGS = MetricSpec(
    "ragherd_groundings_total",
    "counter",
    "Searches for passages by outcome.",
    ("outcome",),
)
RERANKING_DURATION = MetricSpec(
    "ragherd_reranking_duration_seconds",
    "histogram",
    "Time to re-rank passages, or until giving up.",
    ("outcome",),
    buckets=STAGE_BUCKETS,
)
VERIFIER_DURATION = MetricSpec(
    "ragherd_verifier_duration_seconds",
    "histogram",
    "Time until the verifier gave a score or failed.",
    ("outcome",),
    buckets=STAGE_BUCKETS,
)
ANSWER_COMPARISONS = MetricSpec(
    "ragherd_answer_comparisons_total",
    "counter",
    "Pairs of answers compared, by stage and verdict.",
    ("stage", "verdict"),
)
JUDGE_FAILURES = MetricSpec(
    "ragherd_judge_failures_total", "counter", "Pairs of answers that the judge model did not judge.", ("reason",)
)
CITATIONS_REMOVED = MetricSpec(
    "ragherd_citations_removed_total", "counter", "Citations without a source that were removed."
)
DOCUMENTS_STORED = MetricSpec("ragherd_documents_stored_total", "counter", "Documents and new revisions put into use.")
DOCUMENTS_FAILED = MetricSpec(
    "ragherd_documents_failed_total", "counter", "Accepted documents that could not be stored."
)
CHUNKS_NOT_EMBEDDED = MetricSpec(
    "ragherd_chunks_not_embedded_total", "counter", "Chunks whose text the embedder cannot embed."
)
CHUNKS_EMBEDDED = MetricSpec("ragherd_chunks_embedded_total", "counter", "Chunks embedded and written.")
ANSWERS_OUTDATED = MetricSpec(
    "ragherd_answers_outdated_total",
    "counter",
    "Cached answers that a document change made invalid.",
    ("reason",),
)

UPSTREAM_FAULTS = MetricSpec("ragherd_upstream_faults_total", "counter", "Failed calls to Ollama by fault.", ("fault",))

FAILOVERS = MetricSpec(
    "ragherd_backend_failovers_total",
    "counter",
    "Failed calls that moved to another backend.",
    ("backend", "fault"),
)
PREFIX_CHOICES = MetricSpec(
    "ragherd_prefix_choices_total",
    "counter",
    "Choices by reason (prefix, load, unknown, unavailable).",
    ("reason",),
)
PREFIX_BYTES = MetricSpec(
    "ragherd_prefix_bytes_total",
    "counter",
    "Bytes of prompts that the backend knew (matched) or not (new).",
    ("result",),
)
RETRIES = MetricSpec("ragherd_retries_total", "counter", "Retries charged to the retry budget.")
BACKEND_UP = MetricSpec(
    "ragherd_backend_up",
    "gauge",
    "1 if the last health check succeeded, else 0. Fleet-wide.",
    ("backend",),
    "livemostrecent",
)
OVERDUE_CALLS = MetricSpec(
    "ragherd_backend_overdue_calls",
    "gauge",
    "Abandoned calls that still have a permit.",
    ("backend",),
    "livesum",
)
BACKEND_HANGS = MetricSpec(
    "ragherd_backend_hangs_total",
    "counter",
    "Hangs: no token within two first-token deadlines.",
    ("backend",),
)
BACKEND_DRAINED = MetricSpec(
    "ragherd_backend_drained",
    "gauge",
    "1 while an admin has drained the backend, else 0. Fleet-wide.",
    ("backend",),
    "livemostrecent",
)
OLLAMA_GENERATIONS = MetricSpec("ragherd_ollama_generations_total", "counter", "Completed generations.", ("backend",))
OLLAMA_SECONDS = MetricSpec(
    "ragherd_ollama_seconds_total",
    "counter",
    "Time that Ollama reports for each phase.",
    ("backend", "phase"),
)
OLLAMA_TOKENS = MetricSpec(
    "ragherd_ollama_tokens_total",
    "counter",
    "Tokens of the prompt and of the completion.",
    ("backend", "direction"),
)
OLLAMA_TOKENS_PER_SECOND = MetricSpec(
    "ragherd_ollama_tokens_per_second",
    "gauge",
    "Tokens per second of generation since the worker's start.",
    ("backend",),
    "livemostrecent",
)

BREAKER_STATE = MetricSpec(
    "ragherd_circuitbreaker_state",
    "gauge",
    "1 for the current state, else 0. Fleet-wide.",
    ("name", "state"),
    "livemostrecent",
)
BREAKER_CALLS = MetricSpec(
    "ragherd_circuitbreaker_calls_total",
    "counter",
    "Admitted calls by outcome.",
    ("name", "outcome"),
)
BREAKER_NOT_PERMITTED = MetricSpec(
    "ragherd_circuitbreaker_not_permitted_calls_total", "counter", "Calls that the breaker rejected.", ("name",)
)
BREAKER_TRANSITIONS = MetricSpec(
    "ragherd_circuitbreaker_transitions_total",
    "counter",
    "State changes, each once.",
    ("name", "from_state", "to_state"),
)
BREAKER_FAILURE_RATE = MetricSpec(
    "ragherd_circuitbreaker_failure_rate",
    "gauge",
    "Failed calls in the window, in percent. Fleet-wide.",
    ("name",),
    "livemostrecent",
)
BREAKER_SLOW_CALL_RATE = MetricSpec(
    "ragherd_circuitbreaker_slow_call_rate",
    "gauge",
    "Slow calls in the window, in percent. Fleet-wide.",
    ("name",),
    "livemostrecent",
)
BREAKER_STALE_RESULTS = MetricSpec(
    "ragherd_circuitbreaker_stale_results_total",
    "counter",
    "Ignored results of calls from an earlier state.",
    ("name",),
)
BREAKER_LOST_PROBES = MetricSpec(
    "ragherd_circuitbreaker_lost_probes_total",
    "counter",
    "Probes whose worker died before reporting.",
    ("name",),
)
BREAKER_STORE_LOCAL = MetricSpec(
    "ragherd_circuitbreaker_store_local",
    "gauge",
    "1 while a worker of the pod uses a local breaker, else 0.",
    ("name",),
    "livemax",
)

BULKHEAD_IN_USE = MetricSpec(
    "ragherd_bulkhead_in_use", "gauge", "Permits in use: calls to Ollama in progress.", ("name",)
)
BULKHEAD_WAITING = MetricSpec(
    "ragherd_bulkhead_waiting", "gauge", "Calls that wait for a permit, by priority.", ("name", "priority")
)
BULKHEAD_WAIT = MetricSpec(
    "ragherd_bulkhead_wait_seconds",
    "histogram",
    "Time to get a permit, by priority.",
    ("name", "priority"),
    buckets=STAGE_BUCKETS,
)
BULKHEAD_REJECTED = MetricSpec(
    "ragherd_bulkhead_rejected_total",
    "counter",
    "Rejected calls.",
    ("name", "reason", "priority"),
)
BULKHEAD_SHARE_REACHED = MetricSpec(
    "ragherd_bulkhead_share_reached_total",
    "counter",
    "Calls queued because their tenant had its share.",
    ("name",),
)
BULKHEAD_STORE_LOCAL = MetricSpec(
    "ragherd_bulkhead_store_local",
    "gauge",
    "1 while a worker of the pod uses its local share, else 0.",
    ("name",),
    "livemax",
)

POOL_CONNECTIONS = MetricSpec(
    "ragherd_pool_connections", "gauge", "Connections to Ollama by state (active, idle).", ("state",)
)
POOL_WAITING = MetricSpec("ragherd_pool_waiting", "gauge", "Requests that wait for a connection to Ollama.")
POOL_OPENED = MetricSpec("ragherd_pool_connections_opened_total", "counter", "Connections opened to Ollama.")
POOL_REQUESTS = MetricSpec("ragherd_pool_requests_total", "counter", "Requests sent to Ollama.")
POOL_TIMEOUTS = MetricSpec(
    "ragherd_pool_timeouts_total", "counter", "Requests without a connection after CONNECTION_POOL_TIMEOUT."
)

REDIS_UP = MetricSpec(
    "ragherd_redis_up", "gauge", "1 while every worker of the pod reaches Redis, else 0.", across="livemin"
)
BREAKER_REDIS_UP = MetricSpec(
    "ragherd_breaker_redis_up",
    "gauge",
    "The same for BREAKER_REDIS_URL, or for REDIS_URL if it is unset.",
    across="livemin",
)
REDIS_WARNINGS = MetricSpec(
    "ragherd_redis_warnings",
    "gauge",
    "1 for each warning about how Redis is set up, else 0.",
    ("store", "warning"),
    across="livemax",
)
REDIS_MEMORY = MetricSpec(
    "ragherd_redis_memory_used_bytes", "gauge", "Memory that Redis uses. Fleet-wide.", ("store",), "livemostrecent"
)
REDIS_MEMORY_SHARE = MetricSpec(
    "ragherd_redis_memory_used_ratio",
    "gauge",
    "Used share of maxmemory, or 0. Fleet-wide.",
    ("store",),
    "livemostrecent",
)
REDIS_EVICTED = MetricSpec(
    "ragherd_redis_evicted_keys",
    "gauge",
    "Keys evicted by Redis since its start. Fleet-wide.",
    ("store",),
    "livemostrecent",
)
REDIS_SHARDS = MetricSpec(
    "ragherd_redis_shards", "gauge", "Known shards of Redis; 1 without a cluster.", across="livemax"
)
REDIS_SHARDS_UP = MetricSpec(
    "ragherd_redis_shards_up", "gauge", "Shards of Redis that every worker of the pod reaches.", across="livemin"
)
REDIS_ERRORS = MetricSpec("ragherd_redis_errors_total", "counter", "Failed Redis operations.", ("operation",))

RATE_LIMITED = MetricSpec(
    "ragherd_rate_limited_total",
    "counter",
    "Questions that a limit refused or nearly did.",
    ("limit", "outcome"),
)
KEY_FILES = MetricSpec(
    "ragherd_key_file_changes_total", "counter", "Changes of a file with keys: `read`, or `broken`.", ("outcome",)
)
REJECTED_KEYS = MetricSpec("ragherd_rejected_keys_total", "counter", "Requests with a wrong API key.")

HISTORY_MINUTES = MetricSpec(
    "ragherd_history_minutes_total", "counter", "Minutes of the history that were written, each once."
)
HISTORY_LOST = MetricSpec(
    "ragherd_history_lost_minutes_total",
    "counter",
    "Minutes that a worker dropped because Redis was down.",
)

TRACE_SPANS = MetricSpec("ragherd_trace_spans_total", "counter", "Spans for the collector of traces.", ("outcome",))

WORKERS_STARTED = MetricSpec("ragherd_workers_started_total", "counter", "Workers that began to start, successors too.")
WORKERS_REPLACED = MetricSpec(
    "ragherd_workers_replaced_total",
    "counter",
    "Workers replaced by a successor, by reason.",
    ("reason",),
)
BUILD_INFO = MetricSpec(
    "ragherd_build_info", "gauge", "Always 1. The labels have the versions.", ("version", "python_version"), "livemax"
)

ALL_METRICS: tuple[MetricSpec, ...] = tuple(one for one in vars().values() if isinstance(one, MetricSpec))
"""In the order of their declaration."""
