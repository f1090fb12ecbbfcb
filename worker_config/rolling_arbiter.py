"""A gunicorn master that replaces workers without a gap: the successor serves before the old worker stops.

gunicorn itself ends a worker at `max_requests` before it starts another, signals all old workers at once on SIGHUP, and
exits if the new configuration is invalid or a new worker cannot start. It has no setting for the master's class, so the
first configuration hook changes the class (`take_over`).

`next_step` is the replacement policy, a pure function. One successor starts at a time. A worker that is replaced for
its memory or its requests waits until the previous one is gone, so there is never more than one extra process. New
settings do not wait for long streams to end.

The master and each worker share `WorkerFlags`, a few bytes of memory that are mapped before the fork. A flag cannot get
lost and needs no reader that is awake; signals only say that it is time to look.

`ChildSignal` sends signals to a child that something else may have reaped, and never to another process that reused its
ID. `die_with_parent` ends a process when its parent dies, even by SIGKILL.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from api.errors import SettingsError
from api.observability.metric_names import WORKERS_REPLACED as SPEC
from api.settings import load_settings
from worker_config.memory_guard import MemoryGuard


class Reason(StrEnum):
    """Why a worker is replaced, most urgent first."""

    MEMORY = "memory"
    RELOAD = "reload"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A living worker. A higher `age` is younger. `replaced` workers have been signalled to stop."""

    pid: int
    age: int
    ready: bool
    replaced: bool = False
    due: Reason | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Start this many workers, and replace this one."""

    start: int = 0
    replace: WorkerState | None = None


def next_step(workers: Sequence[WorkerState], target: int) -> Step:
    """Returns what the master does now. Called at every iteration of its loop."""
    staying = [worker for worker in workers if not worker.replaced]
    if len(staying) < target:
        return Step(start=target - len(staying))
    if any(not worker.ready for worker in staying):
        return Step()
    one_is_stopping = len(staying) < len(workers)
    due = [worker for worker in staying if worker.due and (worker.due is Reason.RELOAD or not one_is_stopping)]
    if len(staying) > target:
        return Step(replace=_first(due) if due else min(staying, key=lambda worker: worker.age))
    return Step(start=1) if due else Step()


def _first(due: Sequence[WorkerState]) -> WorkerState:
    """Returns the oldest of the most urgent workers."""
    urgency = list(Reason)
    return min(due, key=lambda worker: (urgency.index(worker.due or Reason.REQUESTS), worker.age))


class ReplacementCount:
    """Counts replaced workers by reason: the only metric of the master itself. Create it after PROMETHEUS_MULTIPROC_DIR
    is set.
    """

    def __init__(self) -> None:
        # Only after the variable is set, because prometheus_client reads it at import.
        from prometheus_client import CollectorRegistry, Counter

        counter = Counter(SPEC.name, SPEC.help, SPEC.labels, registry=CollectorRegistry())
        self._series: dict[Reason, Any] = {reason: counter.labels(reason.value) for reason in Reason}

    def add(self, reason: Reason) -> None:
        """Call it when a successor has taken over."""
        self._series[reason].inc()


MIN_PAUSE = 1.0
MAX_PAUSE = 60.0
"""Seconds before the next start after a worker failed to start. Doubles each time."""


class RollingArbiter(Arbiter):  # type: ignore[misc]  # untyped library
    """Takes the place of a plain arbiter (`take_over`), so the defaults are class attributes."""

    memory = MemoryGuard(None)
    _superseded = 0
    """Workers up to this age have old settings."""
    _pause = MIN_PAUSE
    _no_start_before = 0.0

    def manage_workers(self) -> None:
        """Takes one step. Called at every iteration of the loop, at least once per second."""
        step = next_step([self._state_of(worker) for worker in self.WORKERS.values()], self.num_workers)
        if step.start and time.monotonic() >= self._no_start_before:
            for _ in range(step.start):
                self.spawn_worker()
        if step.replace:
            self._replace(step.replace)
        self.metrics_directory.merge_ended_workers(self.WORKERS)

    def reload(self) -> None:
        """Handles SIGHUP: replaces the workers one by one with new settings. Invalid settings change nothing."""
        try:
            load_settings()
            self._load_configuration()
        except (SettingsError, SystemExit) as error:  # gunicorn exits if it cannot read the configuration
            self.log.error("Cannot apply the new settings, keeping the old ones: %s", error)
            return
        self.log.reopen_files()
        self._superseded = self.worker_age
        self._no_start_before = 0.0
        self.cfg.on_reload(self)

    def handle_usr2(self) -> None:
        """Rejects SIGUSR2: a second master would need the metrics port and clear the counters' directory."""
        self.log.error(
            "SIGUSR2 is not supported: a second master cannot share the metrics port and the counters of this one. "
            "Send SIGHUP to apply new settings. For a new version, restart or start a second replica"
        )

    def reap_workers(self) -> None:
        """Reaps like gunicorn, but a new worker that fails to start does not end those that serve."""
        before = dict(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer as halt:
            if not any(worker.flags.ready and not worker.flags.replaced for worker in self.WORKERS.values()):
                raise
            self.log.error("%s The other workers keep serving.", halt.reason)
            self.signal_chld(signal.SIGCHLD, None)  # gunicorn stopped in the middle, so reap again
        for worker in [worker for pid, worker in before.items() if pid not in self.WORKERS]:
            self._clean_up(worker)

    def _load_configuration(self) -> None:
        """Reads gunicorn's configuration again. The bound addresses stay."""
        sys.modules.pop("worker_config.gunicorn_conf", None)  # `-c python:worker_config.gunicorn_conf` imports it
        before = self.app.cfg
        try:
            self.app.reload()
        except SystemExit:
            self.app.cfg = before
            raise
        self.app.cfg.set("bind", before.bind)
        self.setup(self.app)

    def _state_of(self, worker: Any) -> WorkerState:
        flags = worker.flags
        return WorkerState(worker.pid, worker.age, flags.ready, flags.replaced, self._due(worker))

    def _due(self, worker: Any) -> Reason | None:
        if worker.flags.ready and self.memory.is_over(worker.pid):
            return Reason.MEMORY
        if worker.age <= self._superseded:
            return Reason.RELOAD
        return Reason.REQUESTS if worker.flags.recycle else None

    def _replace(self, worker: WorkerState) -> None:
        """Stops a worker whose successor serves."""
        self.log.info("Replacing worker (pid:%s): %s", worker.pid, self._why(worker))
        self._pause = MIN_PAUSE
        self.WORKERS[worker.pid].flags.mark_replaced()
        self.kill_worker(worker.pid, signal.SIGTERM)
        if worker.due:
            self.replacements.add(worker.due)

    def _why(self, worker: WorkerState) -> str:
        match worker.due:
            case Reason.MEMORY:
                return self.memory.describe(worker.pid)
            case Reason.RELOAD:
                return "the settings changed"
            case Reason.REQUESTS:
                return "it served MAX_REQUESTS"
            case None:
                return "too many workers"  # SIGTTOU, or fewer WORKERS

    def _clean_up(self, worker: Any) -> None:
        self.memory.forget(worker.pid)
        if not worker.flags.ready:
            worker.tmp.close()  # after a failed start gunicorn does neither this nor the hook
            self.cfg.child_exit(self, worker)
            self._no_start_before = time.monotonic() + self._pause
            self._pause = min(MAX_PAUSE, self._pause * 2)


def take_over(server: Any) -> None:
    """Changes the class of gunicorn's master before it starts."""
    server.__class__ = RollingArbiter
    server.replacements = ReplacementCount()


_READY, _RECYCLE, _REPLACED = range(3)


class WorkerFlags:
    """Shared by the master and one worker. The worker sets `ready` and `recycle`, the master `replaced`. Flags stay
    set.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def ready(self) -> bool:
        """The worker serves."""
        return self._shared[_READY] == 1

    @property
    def recycle(self) -> bool:
        """The worker has served MAX_REQUESTS and should be replaced."""
        return self._shared[_RECYCLE] == 1

    @property
    def replaced(self) -> bool:
        """A successor serves: SIGTERM stops only this worker, and the replica stays."""
        return self._shared[_REPLACED] == 1

    def mark_ready(self) -> None:
        """Called by the worker."""
        self._shared[_READY] = 1

    def mark_recycle(self) -> None:
        """Called by the worker."""
        self._shared[_RECYCLE] = 1

    def mark_replaced(self) -> None:
        """Called by the master before it sends SIGTERM."""
        self._shared[_REPLACED] = 1


class ChildSignal:
    """Sends signals to one child. The parent creates it right after the child's start.

    On Linux it holds a pidfd, which always refers to that process. On other systems it holds the ID until `ended` is
    called.
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
        """Returns whether the child was still alive to receive the signal."""
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
        """Call it when the child has ended. No signals are sent from then on."""
        with self._lock:
            self._ended = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _descriptor(pid: int) -> int | None:
    """Returns a pidfd, or None if the system has none. Raises `ProcessLookupError` if the child is gone or its ID
    reused.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:  # the kernel does not support the call
        return None
    if _parent(pid) == os.getpid():
        return descriptor
    os.close(descriptor)
    raise ProcessLookupError(pid)


def _parent(pid: int) -> int | None:
    """Reads the parent's ID from /proc: the field after the state, which follows the name in parentheses."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Makes the kernel send `death_signal` when process `parent` dies, and exits at once if it is dead already.

    Linux only. The kernel sends the signal when the parent's *thread* that forked ends; the master forks from threads
    that last.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
