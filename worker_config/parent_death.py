"""A process that asks for its own end when its parent dies, even by SIGKILL (Linux; elsewhere nothing happens).

The kernel sends the signal when the parent's *thread* that forked ends: the master forks from threads that last.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Has the kernel send `death_signal` when process `parent` is gone, and ends at once if it already is."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
