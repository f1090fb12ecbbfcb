"""Signals to a child process that somebody else may have reaped, never to another that was given its id since."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path


class ChildSignal:
    """The way to one child. Made right after its start, by its parent.

    On Linux it holds a descriptor of the process, which names that process for ever. Elsewhere it holds the id, until
    `ended` says that the process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._lock = threading.Lock()
        self._ended = False
        self._descriptor: int | None = None
        try:
            self._descriptor = _descriptor(pid)
        except ProcessLookupError:
            self._ended = True

    def send(self, number: signal.Signals) -> bool:
        """Whether the child was still there to be sent the signal."""
        with self._lock:
            if self._ended:
                return False
            with suppress(ProcessLookupError):
                if self._descriptor is not None:
                    signal.pidfd_send_signal(self._descriptor, number)
                else:
                    os.kill(self.pid, number)
                return True
        return False

    def ended(self) -> None:
        """The child has ended, and may have been reaped: it is sent nothing from now on."""
        with self._lock:
            self._ended = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _descriptor(pid: int) -> int | None:
    """None where the system has none. Raises `ProcessLookupError` where the child is gone, or is another's by now."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:  # a kernel that does not know the call
        return None
    if _parent(pid) == os.getpid():
        return descriptor
    os.close(descriptor)
    raise ProcessLookupError(pid)


def _parent(pid: int) -> int | None:
    """By /proc: the field behind the state, which follows the name in brackets."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
