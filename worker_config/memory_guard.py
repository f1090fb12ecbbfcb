"""Finds the workers that exceed WORKER_MEMORY_LIMIT. The master checks once per second.

A worker must also have grown by a quarter since it was ready. A limit below a worker's initial memory would otherwise
cause endless replacements; it is logged once instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

GROWTH = 1.25
MIB = 2**20


def resident_bytes(pid: int) -> int:
    """Returns the resident set size of a process including shared pages, or 0 if the process is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class MemoryGuard:
    """Compares workers with `limit` in bytes. None disables the check."""

    def __init__(self, limit: int | None, resident: Callable[[int], int] = resident_bytes) -> None:
        self.limit = limit
        self._resident = resident
        self._at_ready: dict[int, int] = {}
        self._warned = False
        self._log = logging.getLogger("gunicorn.error")

    def is_over(self, pid: int) -> bool:
        """Returns whether this worker, which is ready, must be replaced."""
        if self.limit is None:
            return False
        now = self._resident(pid)
        at_ready = self._at_ready.setdefault(pid, now)
        if at_ready * GROWTH > self.limit:
            self._warn(at_ready)
        return now > max(self.limit, at_ready * GROWTH)

    def describe(self, pid: int) -> str:
        """Returns the reason for the log."""
        return f"it uses {self._resident(pid) // MIB} MiB, WORKER_MEMORY_LIMIT is {(self.limit or 0) // MIB} MiB"

    def forget(self, pid: int) -> None:
        """Call it when a worker is gone."""
        self._at_ready.pop(pid, None)

    def _warn(self, at_ready: int) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                "WORKER_MEMORY_LIMIT (%d MiB) is too close to a worker's initial memory (%d MiB): replacing at %d MiB",
                (self.limit or 0) // MIB,
                at_ready // MIB,
                max(self.limit or 0, at_ready * GROWTH) // MIB,
            )
