"""The master's hold on the metrics process: starts it, starts it again when it dies, ends it.

A thread waits for it, because gunicorn's master calls no hook for a child that it does not know. The master keeps
the listening socket, so that a scrape during a restart waits instead of being refused.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from api.module_command import module_command, module_environment
from worker_config.child_signal import ChildSignal

BACKOFF_FIRST = 0.1
BACKOFF_LAST = 10.0
"""Seconds before a metrics process that died is started again: doubled each time, begun anew after a good minute."""
GOOD_LIFE = 60.0


class MetricsProcess:
    """One metrics process at a time, for as long as the master lives."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._master = os.getpid()
        self._child: ChildSignal | None = None
        self._ending = threading.Event()
        self._log = logging.getLogger("gunicorn.error")

    def start(self) -> None:
        """Begins to supervise."""
        self._listener.set_inheritable(True)
        threading.Thread(target=self._supervise, name="metrics-process", daemon=True).start()

    def stop(self) -> None:
        """Ends the metrics process and frees its port."""
        self._ending.set()
        if self._child is not None:
            self._child.send(signal.SIGTERM)
        self._listener.close()

    def left_behind(self) -> None:
        """In a forked worker: lets go of the port, which would stay taken as long as the worker lives."""
        self._listener.close()

    def _supervise(self) -> None:
        pause = BACKOFF_FIRST
        while not self._ending.is_set():
            began = time.monotonic()
            pid = self._spawn()
            if pid is not None:
                self._child = ChildSignal(pid)
                if self._ending.is_set():  # `stop` may have come before there was anybody to stop
                    self._child.send(signal.SIGTERM)
                self._await_end(pid)
                self._child.ended()
            if time.monotonic() - began > GOOD_LIFE:
                pause = BACKOFF_FIRST
            if self._ending.is_set():
                return
            self._log.warning("The metrics process (pid:%s) is gone, another starts in %.1f s", pid, pause)
            self._ending.wait(pause)
            pause = min(BACKOFF_LAST, pause * 2)

    def _spawn(self) -> int | None:
        """posix_spawn and not subprocess: it opens no pipe that a worker forked meanwhile would hold open.

        In a group of its own, so that a terminal's Ctrl-C reaches the master only. None where the machine has no
        process or memory left for it now.
        """
        where = ("--fd", str(self._listener.fileno()), "--dir", str(self._directory))
        command = module_command("worker_config.metrics_server", *where, "--parent-pid", str(self._master))
        try:
            return os.posix_spawn(sys.executable, command, module_environment(os.environ), setpgroup=0)
        except OSError as error:
            self._log.error("The metrics process can not be started: %s", error.strerror)
            return None

    def _await_end(self, pid: int) -> None:
        """The master reaps every child that ends and may come first: then there is nothing left to wait for."""
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
