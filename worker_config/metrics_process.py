"""The master's hold on the metrics process: starts it, starts it again when it dies, ends it.

A thread waits for it, because gunicorn's master calls no hook for a child that it does not know. The master keeps
the listening socket, so that a scrape during a restart waits instead of being refused.

The directory in which the workers of one master count for Prometheus (PROMETHEUS_MULTIPROC_DIR).

It is made before the first fork and before anything imports prometheus_client, which reads the variable then.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from api.module_command import module_command, module_environment
from worker_config.rolling_arbiter import ChildSignal

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


VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(slots=True)
class PrometheusDirectory:
    """`private`: made for this master, gone with it. Otherwise the operator named it, and it stays, empty."""

    path: Path
    private: bool
    _gone: list[int] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets what workers of an earlier master counted."""
        for file in self.path.glob("*.db"):
            file.unlink(missing_ok=True)

    def forget_worker(self, pid: int) -> None:
        """Drops the gauges of a worker that ended; what it counted stays in the totals."""
        from prometheus_client import multiprocess  # not before the variable is set

        multiprocess.mark_process_dead(pid, str(self.path))
        self._gone.append(pid)

    def add_up(self, living: Container[int]) -> None:
        """Adds up what workers that ended have counted. Again and again: it may be held up by a scrape."""
        from api.observability.worker_files import add_up_the_gone  # not before the variable is set

        gone = [pid for pid in self._gone if pid not in living]  # one whose number is in use again counts on
        if not gone or add_up_the_gone(self.path, gone):
            self._gone.clear()

    def remove(self) -> None:
        """At the master's end."""
        if self.private:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.clear()


def prepare_directory() -> PrometheusDirectory:
    """Makes the directory, empty, and says in the environment where it is."""
    named = os.environ.get(VARIABLE)
    if named:
        directory = PrometheusDirectory(Path(named), private=False)
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        directory = PrometheusDirectory(Path(tempfile.mkdtemp(prefix="ragherd-metrics-")), private=True)
        os.environ[VARIABLE] = str(directory.path)
    directory.clear()
    return directory
