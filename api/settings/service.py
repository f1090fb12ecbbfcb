"""How the service listens and logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.settings.concern import Bytes, Concern, NotNegative, Positive, Seconds

MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""


class ServerSettings(Concern):
    """How the service listens and logs."""

    host: Annotated[str, Field(title="address")] = "127.0.0.1"
    """Address of the service and its metrics port. `0.0.0.0`: all.

    The container image sets `0.0.0.0`.
    """
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """Port of the service. 0 picks a free one."""
    workers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Worker processes. Default: the CPUs given to the process.

    Affinity and the control group's quota limit the CPUs. `scripts/run` starts 2 workers.
    """
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of the metrics process. 0 starts none."""
    max_body_bytes: Bytes = 1024 * 1024
    """Largest request body. A larger one gets 413."""
    header_timeout: Seconds = 10.0
    """Time for a whole request head. A slower one gets 408.

    It runs from the head's first byte to its last. A new connection that sends nothing for this long is closed.
    """
    body_timeout: Seconds = 30.0
    """Time for a request body to make progress, else 408.

    The body must bring 240 bytes for each of these seconds: 7,200 bytes every 30 s. Only time in which the service
    waits for the client counts.
    """
    keepalive_timeout: Seconds = 75.0
    """Time that a client connection may be idle.

    Set it above the idle timeout of the load balancer.
    """
    max_connections: Positive | None = None
    """Client connections per worker. Default: up to 4,096.

    The default is lower where file descriptors are few. At the limit, a worker closes an idle connection for a new one.
    A value that the descriptors do not allow stops the start.
    """
    stream_heartbeat: Seconds = 15.0
    """Silence after which a streamed answer sends a heartbeat.

    Keep it below the idle timeout of every proxy in between.
    """
    stream_stall_timeout: Seconds = 60.0
    """Time that the reader of a stream may take nothing.

    After that the reader counts as gone and the generation ends.
    """
    graceful_timeout: Seconds = 30.0
    """Time that requests in flight get after SIGTERM."""
    drain_delay: Annotated[float, Field(ge=0, le=300, title="seconds")] = 0.0
    """Time between SIGTERM and the end of listening.

    `/health/ready` answers 503 during this time, so that load balancers turn away.
    """
    max_requests: NotNegative = 0
    """Requests after which a worker is replaced, without a gap. 0: never."""
    max_requests_jitter: NotNegative = 0
    """Up to this many more requests, a random number for each worker."""
    worker_memory_limit: Annotated[str, Field(title="size", pattern=MEMORY)] | None = None
    """Memory above which a worker is replaced. Default: none.

    Bytes, `800Mi`, `1.5G`, or a share of the control group's limit: `40%`. Workers are replaced one at a time.
    """
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level to log.

    The log has one JSON object per line.
    """
    log_questions: bool = False
    """Show the text of questions in the log."""
