"""What a fleet runs into, and what moves it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is. Shares: how busy something may be on average, so that bursts find room.

    `max_connections`: REDIS_MAX_CONNECTIONS, a worker's most; `maxclients` is Redis's own. `gpus` None: as many as
    are needed, which then are no limit. `memory_factor`: fragmentation, and what a rewrite of the append-only file
    copies. Raises `ValueError`.
    """

    redis_share: float = 0.7
    worker_share: float = 0.7
    gpu_share: float = 0.8
    maxclients: int = 10_000
    max_connections: int = 64
    redis_bytes: float = 8 * 2**30
    network_gbit: float = 10.0
    gpus: int | None = None
    memory_factor: float = 1.5
    redis_empty_bytes: float = 16 * 2**20

    def __post_init__(self) -> None:
        for name in ("redis_share", "worker_share", "gpu_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: a share above 0, up to 1")
        for name in ("maxclients", "max_connections", "redis_bytes", "network_gbit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: a number above 0")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError("gpus: at least 1")


@dataclass(frozen=True, slots=True)
class Limit:
    """`used`: 1 is all that there is, in the share that it may be busy."""

    name: str
    used: float
    moved_by: str


MOVED_BY: Final[Mapping[str, str]] = {
    "Redis's main thread": "fewer, busier workers; a higher hit rate; a faster core; io-threads in redis.conf; "
    "BREAKER_REDIS_URL; redis+cluster:// with several tenants",
    "Redis's network": "RETRIEVAL_CANDIDATES (passages travel with their vectors); a faster link; fewer misses",
    "Redis's connections": "maxclients in redis.conf with the file descriptors for it; REDIS_MAX_CONNECTIONS",
    "Redis's memory": "maxmemory; SEMANTIC_CACHE_MAX_SIZE; an embedder of fewer dimensions; redis+cluster://",
    "workers": "more replicas or WORKERS; an embedder on Ollama takes its work from the worker",
    "GPUs": "more GPUs or more Ollamas in OLLAMA_BASE_URL; a higher hit rate; shorter answers; a smaller model",
}


def limits(used: Mapping[str, float]) -> tuple[Limit, ...]:
    """The fullest first."""
    found = (Limit(name, share, MOVED_BY[name]) for name, share in used.items())
    return tuple(sorted(found, key=lambda limit: -limit.used))
