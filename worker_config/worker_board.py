"""What the master and one worker tell each other: a few bytes of memory that both have, made before the fork.

A word here can not be lost and needs no reader that is awake; signals only say that it is time to look.
"""

from __future__ import annotations

import mmap

_READY, _WORN, _REPLACED = range(3)


class WorkerBoard:
    """The worker writes `ready` and `worn`, the master `replaced`. Each is said once and stays."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def ready(self) -> bool:
        """The worker serves."""
        return self._shared[_READY] == 1

    @property
    def worn(self) -> bool:
        """The worker has served MAX_REQUESTS and would like a successor."""
        return self._shared[_WORN] == 1

    @property
    def replaced(self) -> bool:
        """A successor serves: SIGTERM means to leave quietly, the replica stays."""
        return self._shared[_REPLACED] == 1

    def say_ready(self) -> None:
        """The worker's."""
        self._shared[_READY] = 1

    def say_worn(self) -> None:
        """The worker's."""
        self._shared[_WORN] = 1

    def say_replaced(self) -> None:
        """The master's, before it sends SIGTERM."""
        self._shared[_REPLACED] = 1
