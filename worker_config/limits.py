"""Detects the limits of this process: CPUs, memory and file descriptors, also inside a container.

CPUs come from the affinity mask and the cgroup quota. WORKER_MEMORY_LIMIT may be a share of the memory limit. The
descriptor limit decides how many client connections a worker can hold.
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
    """Yields the cgroup directories, from the process's own to the top, that may hold a limit of `controller`.

    `controller` is `cpu` or `memory`. Supports cgroup versions 1 and 2; yields nothing without cgroups. Each line of
    the membership is `id:controllers:path`. Inside a container the path may be that of the host. Then only the topmost
    directory exists, and it has the right limit.
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


def available_cpus() -> int:
    """Returns the CPUs for workers, at least 1. A container with half of the CPU time has half of the CPUs."""
    return limited_cpus(_affinity(), cpu_quota())


def limited_cpus(affinity: int, quota: float | None) -> int:
    """Returns the smaller limit. A fraction counts as one CPU, because a single worker cannot use more than one."""
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Returns the smallest quota of this process's cgroups in CPUs, or None without one."""
    quotas = [quota for group in group_directories("cpu", root) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_of(group: Path) -> float | None:
    """Version 2 has `max 100000` or `150000 100000` in one file; version 1 has -1 or a number in each of two files."""
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
    """Converts `800Mi`, `1.5G`, `900000000`, or `40%` of the available memory. The settings have validated the form."""
    found = re.fullmatch(r"([\d.]+)(%|\w*)", written)
    assert found is not None
    number, unit = float(found[1]), found[2]
    return int(available_memory(root) * number / 100) if unit == "%" else int(number * UNITS[unit])


def available_memory(root: Path = Path("/")) -> int:
    """Returns bytes: the smallest limit of this process's cgroups, or the machine's memory if that is less."""
    limits = [limit for group in group_directories("memory", root) if (limit := _limit_of(group)) is not None]
    return min([*limits, _machine()])


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit_of(group: Path) -> int | None:
    """Without a limit, version 2 has `max` and version 1 a number larger than any memory."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            written = (group / name).read_text().strip()
        except OSError:
            continue
        return None if written == "max" else int(written)
    return None


OWN_DESCRIPTORS: Final = 64
"""For listening sockets, the event loop, files of metrics and models, and uploads that are written to disk."""
EXTRA_PER_REDIS: Final = 16
"""Connections to each Redis besides those for commands: breaker logs and messages."""
EXTRA_PER_OLLAMA: Final = 8
"""Connections to each Ollama besides the pool: probes and loading."""
DEFAULT_MAX_CONNECTIONS: Final = 4096
"""The default even if more descriptors are available, because each connection takes memory."""


def raise_limit() -> None:
    """Raises the soft descriptor limit to the hard one, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems report "unlimited" but allow fewer
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    """Returns how many descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connections_that_fit(descriptor_limit: int, settings: Settings) -> int:
    """Returns how many client connections fit besides a worker's own descriptors, but at least half."""
    stores = [settings.redis.url, *filter(None, [settings.breaker_redis.url])]
    redis = sum(settings.redis.max_connections * _servers(url) + EXTRA_PER_REDIS for url in stores)
    ollama = (settings.pool.max_size + EXTRA_PER_OLLAMA) * len(settings.ollama.base_urls)
    return max(descriptor_limit - OWN_DESCRIPTORS - redis - ollama, descriptor_limit // 2)


def max_connections_of(descriptor_limit: int, settings: Settings) -> int:
    """Returns MAX_CONNECTIONS or the default, but never more than fit."""
    return min(
        settings.server.max_connections or DEFAULT_MAX_CONNECTIONS, connections_that_fit(descriptor_limit, settings)
    )


def too_many_connections(settings: Settings) -> str:
    """Returns an error line if MAX_CONNECTIONS exceeds what the descriptors allow, else ""."""
    fit = connections_that_fit(descriptor_limit(), settings)
    if (settings.server.max_connections or 0) <= fit:
        return ""
    return f"MAX_CONNECTIONS: {descriptor_limit()} file descriptors allow {fit}; reduce it, or raise ulimit -n"


def _servers(url: str) -> int:
    """Returns the number of servers in a Redis URL. A cluster has connections to each shard."""
    return url.count(",") + 1
