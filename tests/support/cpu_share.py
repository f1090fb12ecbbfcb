"""Measures the share of the machine that a test gets, and the machine's speed. Time limits only hold on a machine that
is as fast as the one they were set for, and if other processes leave its CPUs free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LEAST = 0.05
_ADDITIONS = 200_000
_SECONDS = 0.007
"""What as many additions take on the machine for which the limits were set."""


def slowness() -> float:
    """How many times as long as that machine this one takes for Python; at least 1."""
    return max(1.0, min(_seconds_to_add() for _ in range(10)) / _SECONDS)


def _seconds_to_add() -> float:
    began, total = time.thread_time(), 0
    for number in range(_ADDITIONS):
        total += number
    return time.thread_time() - began


@contextmanager
def measured_share() -> Iterator[Callable[[], float]]:
    """Yields a function that returns, after the block, the share of the CPUs that other processes left; 1 is all.

    Descendants of this process are not other processes.
    """
    began, foreign = time.monotonic(), _foreign_seconds()
    share = 1.0
    yield lambda: share
    taken = (_foreign_seconds() - foreign) / (time.monotonic() - began) / (os.cpu_count() or 1)
    share = max(_LEAST, min(1.0, 1 - taken))


def _foreign_seconds() -> float:
    """Returns the CPU time of other processes since the machine started."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq - _own_ticks()) / _TICKS


def _own_ticks() -> int:
    """Returns the CPU time of this process and its descendants, including those that have ended."""
    parents, ticks = dict[int, int](), dict[int, int]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(entry.name)] = int(fields[1])
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(pid, 0) for pid in own)
