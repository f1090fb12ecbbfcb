"""The dashboard on capacity: what is full, and what will be full next."""

from __future__ import annotations

from typing import Final

from scripts.grafana_panels import GrafanaBoard, graph, quantile, rate, stat

ON_TIME: Final = rate("ragherd_event_loop_lag_seconds_bucket", extra='le="0.25"')

NONE: Final = 'label_replace(vector(0), "operation", "none", "", "")'
"""Before the first failure."""

CAPACITY: Final = GrafanaBoard(
    "capacity",
    "ragherd-capacity",
    "Ragherd: capacity",
    "What is full, and what will be full next?",
    (
        (
            "At a glance",
            (
                stat("Queries", "Questions per second.", "reqps", rate("ragherd_queries_total")),
                stat(
                    "Generations",
                    "Calls to Ollama in progress.",
                    "short",
                    'sum(ragherd_bulkhead_in_use{@, name!~".*-embed"})',
                ),
                stat("Waiting", "Calls that wait for a permit.", "short", "sum(ragherd_bulkhead_waiting{@})", 10, 50),
                stat(
                    "Wait for Ollama",
                    "95th percentile of users' time to get a permit.",
                    "s",
                    quantile(0.95, "ragherd_bulkhead_wait_seconds", extra='priority="user"'),
                    5,
                    20,
                ),
                stat(
                    "Late event loops",
                    "Share of samples in which a worker was over 250 ms late.",
                    "percentunit",
                    f"1 - {ON_TIME} / {rate('ragherd_event_loop_lag_seconds_count')}",
                    0.001,
                    0.01,
                ),
                stat(
                    "Redis's memory",
                    "Used share of maxmemory; 0 without a limit.",
                    "percentunit",
                    "max(ragherd_redis_memory_used_ratio{@})",
                    0.8,
                    0.9,
                ),
            ),
        ),
        (
            "Ollama's share",
            (
                graph(
                    "Bulkhead",
                    "Calls in progress and waiting. More pods do not help if many wait.",
                    "short",
                    ("{{name}} in progress", "sum by (name) (ragherd_bulkhead_in_use{@})"),
                    ("{{name}} waiting", "sum by (name) (ragherd_bulkhead_waiting{@})"),
                ),
                graph(
                    "Time in the queue",
                    "95th percentile of the time to get a permit, by priority.",
                    "s",
                    ("{{name}} {{priority}}", quantile(0.95, "ragherd_bulkhead_wait_seconds", "name, priority")),
                ),
                graph(
                    "Tokens",
                    "Tokens per second of prompts and completions, each generation once.",
                    "short",
                    ("{{direction}}", rate("ragherd_generation_tokens_total", "direction")),
                ),
                graph(
                    "Connections to Ollama",
                    "Active and idle connections, and requests that wait for one.",
                    "short",
                    ("{{state}}", "sum by (state) (ragherd_pool_connections{@})"),
                    ("waiting", "sum(ragherd_pool_waiting{@})"),
                ),
                graph(
                    "Reuse of connections",
                    "Share of requests to Ollama on a connection that was open already.",
                    "percentunit",
                    (
                        "reused",
                        f"1 - {rate('ragherd_pool_connections_opened_total')} / {rate('ragherd_pool_requests_total')}",
                    ),
                ),
                graph(
                    "Requests without a connection",
                    "They got none within CONNECTION_POOL_TIMEOUT.",
                    "ops",
                    ("timeouts", rate("ragherd_pool_timeouts_total")),
                ),
            ),
        ),
        (
            "Workers and Redis",
            (
                graph(
                    "Lag of event loops",
                    "How late workers are. No request should block a worker for more than 50 ms.",
                    "s",
                    ("p50", quantile(0.5, "ragherd_event_loop_lag_seconds")),
                    ("p99", quantile(0.99, "ragherd_event_loop_lag_seconds")),
                ),
                graph(
                    "Clients' connections",
                    "By state. MAX_CONNECTIONS limits those of a worker.",
                    "short",
                    ("{{state}}", "sum by (state) (ragherd_connections{@})"),
                    stacked=True,
                ),
                graph(
                    "Connections closed",
                    "By reason. full and refused: a worker had no room.",
                    "ops",
                    ("{{reason}}", rate("ragherd_connections_closed_total", "reason")),
                ),
                graph(
                    "Redis's memory",
                    "Bytes in use. RagherdRedisMemory fires at 90 % of maxmemory.",
                    "bytes",
                    ("{{store}}", "max by (store) (ragherd_redis_memory_used_bytes{@})"),
                ),
                graph(
                    "Keys evicted by Redis",
                    "In 30 minutes, because its memory was full.",
                    "short",
                    ("{{store}}", "max by (store) (increase(ragherd_redis_evicted_keys{@}[30m]))"),
                ),
                graph(
                    "Failed operations on Redis",
                    "By operation; and minutes of the history that were lost.",
                    "ops",
                    ("{{operation}}", f"{rate('ragherd_redis_errors_total', 'operation')} or {NONE}"),
                    ("lost minutes", rate("ragherd_history_lost_minutes_total")),
                ),
            ),
        ),
    ),
)
