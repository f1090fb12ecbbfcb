"""How the service listens and logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.settings.concern import Concern, NotNegative, Positive, Seconds

MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""


class ServerSettings(Concern):
    """How the service listens and logs."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    workers: Annotated[int, Field(ge=1, le=1000)] | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    max_body_bytes: Positive = 1024 * 1024
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    keepalive_timeout: Seconds = 75.0
    max_connections: Positive | None = None
    stream_heartbeat: Seconds = 15.0
    stream_stall_timeout: Seconds = 60.0
    graceful_timeout: Seconds = 30.0
    drain_delay: Annotated[float, Field(ge=0, le=300)] = 0.0
    max_requests: NotNegative = 0
    max_requests_jitter: NotNegative = 0
    worker_memory_limit: Annotated[str, Field(pattern=MEMORY)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_questions: bool = False
