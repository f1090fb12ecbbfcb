"""How many file descriptors a process may have, and how many of a worker's are left for its clients."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import Final

from api.settings import Settings

OWN: Final = 64
"""For sockets that listen, the event loop, files of metrics and models, uploads on their way to disk."""
BESIDE_COMMANDS: Final = 16
"""Connections to each Redis beside those for commands: logs of breakers, messages."""
BESIDE_POOL: Final = 8
"""Connections to each Ollama beside the pool: probes and loading."""
MOST: Final = 4096
"""Connections that a worker holds unless told otherwise, however many descriptors it may have: each takes memory."""


def raise_limit() -> None:
    """The soft limit becomes the hard one, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # systems that say "unlimited" and mean fewer
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptors() -> int:
    """How many this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connections_that_fit(descriptors: int, settings: Settings) -> int:
    """What a worker's own connections and files leave. At least half, where it would use more than that."""
    stores = [settings.redis.url, *filter(None, [settings.breaker_redis.url])]
    redis = sum(settings.redis.max_connections * _servers(url) + BESIDE_COMMANDS for url in stores)
    ollama = (settings.pool.max_size + BESIDE_POOL) * len(settings.ollama.base_urls)
    return max(descriptors - OWN - redis - ollama, descriptors // 2)


def most_connections(descriptors: int, settings: Settings) -> int:
    """MAX_CONNECTIONS, or what follows without it; never more than fit."""
    return min(settings.server.max_connections or MOST, connections_that_fit(descriptors, settings))


def too_many_connections(settings: Settings) -> str:
    """One line if MAX_CONNECTIONS is more than the descriptors allow, else nothing."""
    fit = connections_that_fit(descriptors(), settings)
    if (settings.server.max_connections or 0) <= fit:
        return ""
    return f"MAX_CONNECTIONS: {descriptors()} file descriptors leave room for {fit}; set fewer, or raise ulimit -n"


def _servers(url: str) -> int:
    """How many a Redis URL names: a cluster's commands go to each shard."""
    return url.count(",") + 1
