"""The dashboards for Grafana. `python -m scripts.generate_monitoring` writes them as JSON.

Figures of the whole fleet are the same in every pod (max by); others are summed.
"""

from __future__ import annotations

from typing import Final

from scripts.grafana_capacity import CAPACITY
from scripts.grafana_panels import GrafanaBoard, GrafanaPanel, GrafanaQuery, graph, quantile, rate, stat

ASKS: Final = 'route=~"/query|/feedback|/mcp|/documents.*|/api/(chat|generate|embed.*)|/v1/.+"'
"""What users call."""
REQUESTS: Final = "ragherd_http_request_duration_seconds_count"
STAGES: Final = "ragherd_query_stage_duration_seconds"
QUERIES: Final = "ragherd_queries_total"
HIT_RATE: Final = rate(QUERIES, extra='status="hit"') + " / " + rate(QUERIES)
FAILED: Final = "(" + rate(REQUESTS, extra=f'status=~"5..", {ASKS}') + " or vector(0)) / " + rate(REQUESTS, extra=ASKS)

OVERVIEW: Final = GrafanaBoard(
    "overview",
    "ragherd",
    "Ragherd: overview",
    "Is it well? Answers, errors, latency and what it depends on.",
    (
        (
            "At a glance",
            (
                stat("Queries", "Questions per second.", "reqps", rate("ragherd_queries_total")),
                stat("Hit rate", "Share of questions that the cache answered.", "percentunit", HIT_RATE),
                stat("Failed requests", "Share of users' requests with 5xx.", "percentunit", FAILED, 0.01, 0.05),
                stat(
                    "Open breakers",
                    "Circuit breakers that reject calls now.",
                    "short",
                    'sum(max by (namespace, name) (ragherd_circuitbreaker_state{@, state="open"}))',
                    1,
                    1,
                ),
                stat(
                    "Pods without Redis",
                    "Pods in which a worker cannot reach Redis.",
                    "short",
                    "count(ragherd_redis_up{@}) - sum(ragherd_redis_up{@})",
                    1,
                    1,
                ),
                stat(
                    "Alerts",
                    "Alerts that fire now, in all of Prometheus's namespaces.",
                    "short",
                    'count(ALERTS{alertname=~"Ragherd.*", alertstate="firing"}) or vector(0)',
                    1,
                    3,
                ),
            ),
        ),
        (
            "Answers",
            (
                graph(
                    "Queries by outcome",
                    "hit, miss, stale, bypass, coalesced; error: no answer; left: the client went away.",
                    "reqps",
                    ("{{status}}", rate("ragherd_queries_total", "status")),
                    stacked=True,
                ),
                graph(
                    "Answer time",
                    "From the question to the end of the answer, including time in the queue.",
                    "s",
                    *(
                        (f"p{share * 100:.0f}", quantile(share, STAGES, extra='stage="total"'))
                        for share in (0.5, 0.95, 0.99)
                    ),
                ),
                graph(
                    "95th percentile by stage",
                    "Where the time goes.",
                    "s",
                    ("{{stage}}", quantile(0.95, STAGES, "stage", 'stage!="total"')),
                ),
                graph(
                    "Failed requests",
                    "Share of users' requests with 5xx, against the objective: 1 % in 30 days.",
                    "percentunit",
                    ("now", FAILED),
                    ("last hour", 'namespace:ragherd_request_errors:ratio_rate1h{namespace=~"$namespace"}'),
                    lines=0.01,
                ),
                graph(
                    "Responses by status",
                    "Of all routes. 499: the client left before the end.",
                    "reqps",
                    ("{{status}}", rate(REQUESTS, "status")),
                    stacked=True,
                ),
                graph(
                    "Requests in flight",
                    "Requests whose response has not ended, by pod.",
                    "short",
                    ("{{pod}} {{instance}}", "sum by (pod, instance) (ragherd_http_requests_in_flight{@})"),
                ),
            ),
        ),
        (
            "Fleet",
            (
                graph(
                    "Pods by version",
                    "Two versions for a long time: a rollout is stuck.",
                    "short",
                    ("{{version}}", "count by (version) (ragherd_build_info{@})"),
                ),
                graph(
                    "Starts of workers",
                    "Starts in 30 minutes, and those that replaced a worker on purpose. Others follow a crash.",
                    "short",
                    ("started", "sum(increase(ragherd_workers_started_total{@}[30m]))"),
                    ("replaced", "sum(increase(ragherd_workers_replaced_total{@}[30m]))"),
                ),
                graph(
                    "Documents",
                    "Documents stored and failed, and chunks embedded, per second.",
                    "ops",
                    ("stored", rate("ragherd_documents_stored_total")),
                    ("failed", rate("ragherd_documents_failed_total")),
                    ("chunks embedded", rate("ragherd_chunks_embedded_total")),
                ),
            ),
        ),
    ),
)


def bound(name: str, kind: str = "all") -> str:
    """The false-hit rate of one kind of hit, or a bound of its interval."""
    return f'max(ragherd_cache_false_hit_rate{{@, kind="{kind}", bound="{name}"}})'


CACHE: Final = GrafanaBoard(
    "cache-quality",
    "ragherd-cache",
    "Ragherd: cache quality",
    "Does the cache help, and is it right?",
    (
        (
            "At a glance",
            (
                stat("Hit rate", "Share of questions that the cache answered.", "percentunit", HIT_RATE),
                stat(
                    "Wrong hits", "Estimated share of wrong answers from the cache.", "percentunit", bound("estimate")
                ),
                stat(
                    "Wrong hits, at most",
                    "Upper end of the 95 % interval: few labels make it wide.",
                    "percentunit",
                    bound("high"),
                ),
                stat(
                    "Accepted",
                    "Highest share that the fleet accepts at its level.",
                    "percentunit",
                    "max(ragherd_cache_target_error{@})",
                ),
                stat(
                    "Tightened",
                    "Level of tightening because of wrong answers, 0 to 4.",
                    "short",
                    "max(ragherd_cache_tightened{@})",
                    1,
                    3,
                ),
                stat(
                    "Labels",
                    "Comparisons behind the estimate.",
                    "short",
                    'max(ragherd_cache_false_hit_samples{@, kind="all"})',
                ),
            ),
        ),
        (
            "Hits",
            (
                graph(
                    "Look-ups",
                    "By result. unavailable: Redis or the embedder failed.",
                    "ops",
                    ("{{result}}", rate("ragherd_cache_lookups_total", "result")),
                    stacked=True,
                ),
                graph(
                    "Hit rate",
                    "Now, and the last half hour against the last day, which RagherdHitRateLow compares.",
                    "percentunit",
                    ("now", HIT_RATE),
                    ("half an hour", 'namespace:ragherd_cache_hits:ratio_rate30m{namespace=~"$namespace"}'),
                    ("a day", 'namespace:ragherd_cache_hits:ratio_rate1d{namespace=~"$namespace"}'),
                ),
                graph(
                    "Hits by kind",
                    "exact: the same question; semantic: a similar one.",
                    "reqps",
                    ("{{kind}}", rate("ragherd_queries_total", "kind", 'status="hit"')),
                    stacked=True,
                ),
                graph(
                    "Entries stored and lost",
                    "Evicted: SEMANTIC_CACHE_MAX_SIZE is reached. Outdated: a document changed.",
                    "ops",
                    ("stored", rate("ragherd_cache_stores_total")),
                    ("evicted", rate("ragherd_cache_evictions_total")),
                    ("outdated", f"{rate('ragherd_answers_outdated_total')} or vector(0)"),
                    ("deleted by admins", f"{rate('ragherd_semantic_cache_invalidations_total')} or vector(0)"),
                ),
                graph(
                    "Rejected by guards",
                    "Similar questions whose numbers, names, negation or the like differ, by guard.",
                    "ops",
                    ("{{guard}}", rate("ragherd_cache_guard_rejections_total", "guard")),
                    stacked=True,
                ),
                graph(
                    "Refreshes of expired answers",
                    "By outcome. Stale answers are served while Ollama fails.",
                    "ops",
                    ("{{outcome}}", rate("ragherd_cache_refreshes_total", "outcome")),
                ),
            ),
        ),
        (
            "Correctness",
            (
                graph(
                    "Wrong hits",
                    "The estimate with its 95 % interval, and what is accepted.",
                    "percentunit",
                    ("estimate", bound("estimate")),
                    ("low", bound("low")),
                    ("high", bound("high")),
                    ("accepted", "max(ragherd_cache_target_error{@})"),
                ),
                graph(
                    "Labels",
                    "Comparisons of cached with fresh answers, and votes, by verdict.",
                    "ops",
                    ("{{verdict}}", rate("ragherd_cache_labels_total", "verdict")),
                    stacked=True,
                ),
                graph(
                    "Sampled hits",
                    "Hits that are generated again to compare them, by outcome.",
                    "ops",
                    ("{{outcome}}", rate("ragherd_cache_shadow_calls_total", "outcome")),
                ),
                graph(
                    "Feedback",
                    "Votes of users, and entries taken out of the cache because of them.",
                    "ops",
                    ("{{verdict}}", rate("ragherd_feedback_total", "verdict")),
                    ("{{change}}", rate("ragherd_cache_quarantines_total", "change")),
                ),
                graph(
                    "Labels lost",
                    "Labels that were not written, by reason.",
                    "ops",
                    ("{{reason}}", rate("ragherd_cache_labels_dropped_total", "reason")),
                ),
                graph(
                    "Shared generations",
                    "Questions that shared another's generation, and generations whose leader was lost, by event.",
                    "ops",
                    ("shared", rate("ragherd_queries_total", extra='status="coalesced"')),
                    ("{{event}}", rate("ragherd_single_flight_events_total", "event")),
                ),
            ),
        ),
    ),
)

STATE: Final = (
    '2 * max by (name) (ragherd_circuitbreaker_state{@, state="open"})'
    ' + max by (name) (ragherd_circuitbreaker_state{@, state="half_open"})'
)

OLLAMA: Final = GrafanaBoard(
    "breaker-and-ollama",
    "ragherd-ollama",
    "Ragherd: breaker and Ollama",
    "Does Ollama answer, and what does the breaker make of it?",
    (
        (
            "Circuit breaker",
            (
                GrafanaPanel(
                    "State",
                    "CLOSED: calls pass. OPEN: calls are rejected. HALF_OPEN: a few probes pass.",
                    "short",
                    (GrafanaQuery(STATE, "{{name}}"),),
                    "state-timeline",
                    names=((0, "CLOSED", "green"), (1, "HALF_OPEN", "yellow"), (2, "OPEN", "red")),
                ),
                graph(
                    "Failed and slow calls",
                    "Of the breaker's window. It opens at CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD (50 %).",
                    "percent",
                    ("{{name}} failed", "max by (name) (ragherd_circuitbreaker_failure_rate{@})"),
                    ("{{name}} slow", "max by (name) (ragherd_circuitbreaker_slow_call_rate{@})"),
                    lines=50,
                ),
                graph(
                    "Openings in 30 minutes",
                    "RagherdBreakerFlapping fires at three.",
                    "short",
                    (
                        "{{name}}",
                        'sum by (name) (increase(ragherd_circuitbreaker_transitions_total{@, to_state="open"}[30m]))',
                    ),
                    lines=3,
                ),
                graph(
                    "Calls by outcome",
                    "Calls that the breaker admitted.",
                    "ops",
                    ("{{outcome}}", rate("ragherd_circuitbreaker_calls_total", "outcome")),
                    stacked=True,
                ),
                graph(
                    "Rejected calls",
                    "By the breaker, and by the bulkhead with its reason.",
                    "ops",
                    ("{{name}} breaker", rate("ragherd_circuitbreaker_not_permitted_calls_total", "name")),
                    ("{{name}} {{reason}}", rate("ragherd_bulkhead_rejected_total", "name, reason")),
                ),
                graph(
                    "Pods with a local breaker",
                    "Pods that cannot reach Redis use a local breaker.",
                    "short",
                    ("{{name}}", "sum by (name) (ragherd_circuitbreaker_store_local{@})"),
                ),
            ),
        ),
        (
            "Ollama",
            (
                graph(
                    "Backends that answer",
                    "1 if the last health check succeeded.",
                    "short",
                    ("{{backend}}", "max by (backend) (ragherd_backend_up{@})"),
                ),
                graph(
                    "Faults",
                    "Failed calls by fault.",
                    "ops",
                    ("{{fault}}", rate("ragherd_upstream_faults_total", "fault")),
                    stacked=True,
                ),
                graph(
                    "Retries and failovers",
                    "Failed calls that were tried again, there or at another backend.",
                    "ops",
                    ("retries", rate("ragherd_retries_total")),
                    ("failovers", f"{rate('ragherd_backend_failovers_total')} or vector(0)"),
                ),
                graph(
                    "Tokens",
                    "Tokens per second that Ollama read and wrote.",
                    "short",
                    ("{{backend}} {{direction}}", rate("ragherd_ollama_tokens_total", "backend, direction")),
                ),
                graph(
                    "Speed of generation",
                    "Tokens per second of one generation, on average.",
                    "short",
                    ("{{backend}}", "avg by (backend) (ragherd_ollama_tokens_per_second{@})"),
                ),
                graph(
                    "Busy time",
                    "Seconds per second that Ollama spends in each phase. load: it loads a model.",
                    "s",
                    ("{{backend}} {{phase}}", rate("ragherd_ollama_seconds_total", "backend, phase")),
                    stacked=True,
                ),
            ),
        ),
    ),
)

BOARDS: Final = (OVERVIEW, CACHE, OLLAMA, CAPACITY)
