"""What WORKER_MEMORY_LIMIT comes to in bytes, and how much memory this process was given."""

from __future__ import annotations

import os
import re
from pathlib import Path

from worker_config.control_groups import group_directories

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
