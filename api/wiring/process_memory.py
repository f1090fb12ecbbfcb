"""The memory and the threads of a worker's process: the garbage collector, and the allocator of the C library."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

YOUNG_OBJECTS: Final = 10_000
"""New objects after which the garbage collector runs. With Python's default it took 7 % of a miss: requests in progress
have thousands of objects, which it looked at again and again.
"""
SWITCH_SECONDS: Final = 0.0005
"""How long a thread that runs Python code may keep the event loop waiting each time the loop needs the GIL. Python's
default is 0.005, and one callback may need the GIL many times.
"""
M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def own_process() -> None:
    """Call it when everything is open, in a process in which nothing else runs."""
    # Objects of now live as long as the worker. The collector's pauses are shorter if it cannot see them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    sys.setswitchinterval(SWITCH_SECONDS)


def share_heaps() -> None:
    """Lets all threads use two heaps of glibc's allocator. By itself each thread has one, and keeps what it freed."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
