"""Supervises the metrics process from the gunicorn master, and prepares the directory of the workers' metrics.

A thread waits for the process, because the master calls no hook for a child that it does not know. The master keeps the
listening socket, so a scrape during a restart waits instead of being refused.

PROMETHEUS_MULTIPROC_DIR is set before the first fork and before anything imports prometheus_client, which reads it at
import.
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

MIN_BACKOFF = 0.1
MAX_BACKOFF = 10.0
"""Seconds before a metrics process that died is restarted. Doubles each time; a process that lived long resets it."""
BACKOFF_RESET_SECONDS = 60.0


class MetricsProcess:
    """Keeps one metrics process running while the master lives."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._master = os.getpid()
        self._child: ChildSignal | None = None
        self._ending = threading.Event()
        self._log = logging.getLogger("gunicorn.error")

    def start(self) -> None:
        """Starts the supervising thread."""
        self._listener.set_inheritable(True)
        threading.Thread(target=self._supervise, name="metrics-process", daemon=True).start()

    def stop(self) -> None:
        """Ends the metrics process and frees its port."""
        self._ending.set()
        if self._child is not None:
            self._child.send(signal.SIGTERM)
        self._listener.close()

    def close_in_worker(self) -> None:
        """Closes the inherited socket in a forked worker. Otherwise the port would stay in use as long as the worker
        lives.
        """
        self._listener.close()

    def _supervise(self) -> None:
        pause = MIN_BACKOFF
        while not self._ending.is_set():
            began = time.monotonic()
            pid = self._spawn()
            if pid is not None:
                self._child = ChildSignal(pid)
                if self._ending.is_set():  # `stop` may have been called before there was a child to stop
                    self._child.send(signal.SIGTERM)
                self._await_end(pid)
                self._child.ended()
            if time.monotonic() - began > BACKOFF_RESET_SECONDS:
                pause = MIN_BACKOFF
            if self._ending.is_set():
                return
            self._log.warning("The metrics process (pid:%s) ended; restarting it in %.1f s", pid, pause)
            self._ending.wait(pause)
            pause = min(MAX_BACKOFF, pause * 2)

    def _spawn(self) -> int | None:
        """Starts the process, or returns None if the machine has no process or memory left.

        Uses posix_spawn, not subprocess, because subprocess opens a pipe that a worker forked meanwhile would inherit.
        The process has its own group, so that Ctrl-C in a terminal reaches only the master.
        """
        where = ("--fd", str(self._listener.fileno()), "--dir", str(self._directory))
        command = module_command("worker_config.metrics_server", *where, "--parent-pid", str(self._master))
        try:
            return os.posix_spawn(sys.executable, command, module_environment(os.environ), setpgroup=0)
        except OSError as error:
            self._log.error("Cannot start the metrics process: %s", error.strerror)
            return None

    def _await_end(self, pid: int) -> None:
        """Waits for the process. The master reaps every child that ends and may be first; then nothing is left to wait
        for.
        """
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(slots=True)
class PrometheusDirectory:
    """A `private` directory is removed with this master. One that the operator set is only emptied."""

    path: Path
    private: bool
    _gone: list[int] = field(default_factory=list)

    def clear(self) -> None:
        """Removes the counts of an earlier master's workers."""
        for file in self.path.glob("*.db"):
            file.unlink(missing_ok=True)

    def forget_worker(self, pid: int) -> None:
        """Drops the gauges of a worker that ended. Its counts stay in the totals."""
        from prometheus_client import multiprocess  # only after the variable is set

        multiprocess.mark_process_dead(pid, str(self.path))
        self._gone.append(pid)

    def merge_ended_workers(self, living: Container[int]) -> None:
        """Merges the counts of workers that ended. Called repeatedly, because a running scrape may delay it."""
        from api.observability.worker_files import add_up_the_gone  # only after the variable is set

        gone = [pid for pid in self._gone if pid not in living]  # a reused process ID keeps counting
        if not gone or add_up_the_gone(self.path, gone):
            self._gone.clear()

    def remove(self) -> None:
        """Called when the master ends."""
        if self.private:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.clear()


def prepare_directory() -> PrometheusDirectory:
    """Creates the empty directory and sets the environment variable."""
    named = os.environ.get(VARIABLE)
    if named:
        directory = PrometheusDirectory(Path(named), private=False)
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        directory = PrometheusDirectory(Path(tempfile.mkdtemp(prefix="ragherd-metrics-")), private=True)
        os.environ[VARIABLE] = str(directory.path)
    directory.clear()
    return directory
