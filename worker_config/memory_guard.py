"""Which workers use more memory than WORKER_MEMORY_LIMIT. The master asks, once a second.

A worker must also have grown by a quarter since it was ready: a limit below what a worker starts with would have
them replaced for ever, and is said once in the log instead.
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
    """What a process has in memory (its resident set), shared pages included. 0 when it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class MemoryGuard:
    """`limit` in bytes; None: no worker is ever over it."""

    def __init__(self, limit: int | None, resident: Callable[[int], int] = resident_bytes) -> None:
        self.limit = limit
        self._resident = resident
        self._at_ready: dict[int, int] = {}
        self._warned = False
        self._log = logging.getLogger("gunicorn.error")

    def is_over(self, pid: int) -> bool:
        """Whether this worker, which is ready, is to be replaced."""
        if self.limit is None:
            return False
        now = self._resident(pid)
        at_ready = self._at_ready.setdefault(pid, now)
        if at_ready * GROWTH > self.limit:
            self._warn(at_ready)
        return now > max(self.limit, at_ready * GROWTH)

    def describe(self, pid: int) -> str:
        """For the log."""
        return f"it uses {self._resident(pid) // MIB} MiB, WORKER_MEMORY_LIMIT is {(self.limit or 0) // MIB} MiB"

    def forget(self, pid: int) -> None:
        """The worker is gone."""
        self._at_ready.pop(pid, None)

    def _warn(self, at_ready: int) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                "WORKER_MEMORY_LIMIT (%d MiB) is too near to what a worker starts with (%d MiB): replaced at %d MiB",
                (self.limit or 0) // MIB,
                at_ready // MIB,
                max(self.limit or 0, at_ready * GROWTH) // MIB,
            )
