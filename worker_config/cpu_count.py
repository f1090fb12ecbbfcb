"""How many CPUs this process was given: by its affinity mask, and by the quota of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

from worker_config.control_groups import group_directories


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
