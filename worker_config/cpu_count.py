"""How many CPUs this process was given: by its affinity mask, and by the quota of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpus_given() -> int:
    """CPUs for workers, at least 1. A container with half a machine's time counts as half a machine."""
    return whole_cpus(_affinity(), cpu_quota())


def whole_cpus(affinity: int, quota: float | None) -> int:
    """The fewer of both. A part of a CPU counts as one, since a single worker could not use what is beyond it."""
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest quota of this process's control groups, in CPUs; None without one. Version 2 and version 1."""
    try:
        membership = (root / "proc/self/cgroup").read_text()
    except OSError:
        return None
    mounted = root / "sys/fs/cgroup"
    quotas = [quota for group in _group_directories(membership, mounted) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _group_directories(membership: str, mounted: Path) -> Iterator[Path]:
    """The group of each line `id:controllers:path` that may hold a quota, and every group above it.

    Inside a container the path may be that of the host: then only the topmost directory exists, and is the right one.
    """
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = [mounted]
        elif "cpu" in controllers.split(","):
            bases = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for base in bases:
            yield from (base / part for part in (group, *group.parents))


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
