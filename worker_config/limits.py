"""The control groups that a process is in, from its own to the topmost: where a container's limits are written.

How many CPUs this process was given: by its affinity mask, and by the quota of its control groups.

What WORKER_MEMORY_LIMIT comes to in bytes, and how much memory this process was given.

How many file descriptors a process may have, and how many of a worker's are left for its clients.
"""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from api.settings import Settings


def group_directories(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The directories that may hold a limit of `controller` (`cpu`, `memory`); none where there are no groups.

    Version 2 and version 1. Each line of the membership is `id:controllers:path`. Inside a container the path may be
    that of the host: then only the topmost directory exists, and is the right one.
    """
    try:
        membership = (root / "proc/self/cgroup").read_text()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = [mounted]
        elif controller in controllers.split(","):
            bases = [mounted / controllers, mounted / controller]
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for base in bases:
            yield from (base / part for part in (group, *group.parents))


def cpus_given() -> int:
    """CPUs for workers, at least 1. A container with half a machine's time counts as half a machine."""
    return whole_cpus(_affinity(), cpu_quota())


def whole_cpus(affinity: int, quota: float | None) -> int:
    """The fewer of both. A part of a CPU counts as one, since a single worker could not use what is beyond it."""
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest quota of this process's control groups, in CPUs; None without one."""
    quotas = [quota for group in group_directories("cpu", root) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_of(group: Path) -> float | None:
    """Version 2 writes `max 100000` or `150000 100000` in one file, version 1 -1 or a number in two."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota in {"max", "-1"} else int(quota) / int(period)


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def limit_in_bytes(written: str, root: Path = Path("/")) -> int:
    """`800Mi`, `1.5G`, `900000000`, or `40%` of the memory given. The settings have checked the form."""
    found = re.fullmatch(r"([\d.]+)(%|\w*)", written)
    assert found is not None
    number, unit = float(found[1]), found[2]
    return int(memory_given(root) * number / 100) if unit == "%" else int(number * UNITS[unit])


def memory_given(root: Path = Path("/")) -> int:
    """Bytes: the smallest limit of this process's control groups, or the machine's memory where that is less."""
    limits = [limit for group in group_directories("memory", root) if (limit := _limit_of(group)) is not None]
    return min([*limits, _machine()])


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit_of(group: Path) -> int | None:
    """Version 2 writes `max` or a number, version 1 a number that is larger than any machine where there is none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            written = (group / name).read_text().strip()
        except OSError:
            continue
        return None if written == "max" else int(written)
    return None


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
