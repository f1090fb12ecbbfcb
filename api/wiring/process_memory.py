"""The memory and the threads of a worker's process: the garbage collector, and the allocator of the C library."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
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
TRIM_SECONDS: Final = 60.0
"""Seconds between two times when free memory goes back to the system. Each takes some milliseconds in a thread."""
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


async def keep_trimming(seconds: float = TRIM_SECONDS) -> None:
    """Gives free memory back to the system, again and again.

    By itself glibc gives back only what is free at the end of its heap, and a worker grew by 2 MiB in a quarter of an
    hour of load.
    """
    trim = _trim()
    while True:
        await asyncio.sleep(seconds)
        if trim is not None:
            await asyncio.to_thread(trim, 0)


def _trim() -> Callable[[int], int] | None:
    """`malloc_trim`. None if the C library has none, such as musl."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found
