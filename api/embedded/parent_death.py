"""A child that dies with its parent, even when the parent is killed with SIGKILL.

On Linux the kernel does it: the child asks for a signal at its parent's death (PR_SET_PDEATHSIG) before it becomes
the program. Two traps: the signal comes when the *thread* that forked ends, so children are started from the main
thread; and a parent that died before the request is never noticed, so the parent's id is checked again after it.

Elsewhere a small supervisor does it: `orphan_guard` waits at a pipe whose other end only the parent holds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from api.module_command import module_command, module_environment

_PR_SET_PDEATHSIG = 1

KERNEL_WATCHES_PARENTS = sys.platform == "linux"


def death_signal_request(death_signal: signal.Signals) -> Callable[[], None]:
    """What the forked child runs before it becomes the program (`preexec_fn`). Linux only.

    Everything that allocates happens here, in the parent: between fork and exec there are only system calls.
    """
    require_main_thread()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, number = os.getpid(), int(death_signal)

    def request() -> None:
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return request


def start_orphan_guard(group: int) -> subprocess.Popen[bytes]:
    """The supervisor for platforms without PR_SET_PDEATHSIG: ends process group `group` when this process is gone."""
    return subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
        module_command("api.embedded.orphan_guard", str(group)),
        env=module_environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def require_main_thread() -> None:
    """Raises `RuntimeError` in any other thread: its end would take the child with it."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: another thread's end would kill them")
