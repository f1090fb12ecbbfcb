"""gunicorn's master, which replaces workers without a gap: the successor serves before the predecessor leaves.

gunicorn itself lets a worn worker die first, signals all old workers at once on SIGHUP, waits for them meanwhile, and
ends itself when the new configuration is bad or a new worker can not start. It has no setting for the master's class,
so the configuration's first hook gives it this one (`take_over`). Whom to start and to replace is `succession`'s.

Who follows whom: pure rules, from how the workers stand to what the master does next.

A worker that is to go is replaced, never missed: its successor is started first, and serves before it leaves. One
successor starts at a time. A worker that goes for its memory or its age waits until the one before it is gone, so
that there is never more than one process more than wanted; new settings do not wait for long streams to end.

The one figure that the master itself counts for Prometheus: workers replaced, by reason.

What the master and one worker tell each other: a few bytes of memory that both have, made before the fork.

A word here can not be lost and needs no reader that is awake; signals only say that it is time to look.

Signals to a child process that somebody else may have reaped, never to another that was given its id since.

A process that asks for its own end when its parent dies, even by SIGKILL (Linux; elsewhere nothing happens).

The kernel sends the signal when the parent's *thread* that forked ends: the master forks from threads that last.
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
    """Why a worker is replaced; the most urgent first."""

    MEMORY = "memory"
    RELOAD = "reload"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One living worker. `age`: the higher, the younger. `replaced`: it has been told to leave."""

    pid: int
    age: int
    ready: bool
    replaced: bool = False
    due: Reason | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Start so many workers; tell this one to leave."""

    start: int = 0
    replace: WorkerState | None = None


def next_step(workers: Sequence[WorkerState], wanted: int) -> Step:
    """What the master does now; called again at every turn of its loop."""
    staying = [worker for worker in workers if not worker.replaced]
    if len(staying) < wanted:
        return Step(start=wanted - len(staying))
    if any(not worker.ready for worker in staying):
        return Step()
    one_leaves = len(staying) < len(workers)
    due = [worker for worker in staying if worker.due and (worker.due is Reason.RELOAD or not one_leaves)]
    if len(staying) > wanted:
        return Step(replace=_first(due) if due else min(staying, key=lambda worker: worker.age))
    return Step(start=1) if due else Step()


def _first(due: Sequence[WorkerState]) -> WorkerState:
    """The most urgent, of these the oldest."""
    urgency = list(Reason)
    return min(due, key=lambda worker: (urgency.index(worker.due or Reason.REQUESTS), worker.age))


class ReplacementCount:
    """Made once PROMETHEUS_MULTIPROC_DIR is set. Shows every reason at zero from the start."""

    def __init__(self) -> None:
        # Not before the variable is set, which prometheus_client reads when it is imported.
        from prometheus_client import CollectorRegistry, Counter

        counter = Counter(SPEC.name, SPEC.help, SPEC.labels, registry=CollectorRegistry())
        self._series: dict[Reason, Any] = {reason: counter.labels(reason.value) for reason in Reason}

    def add(self, reason: Reason) -> None:
        """A successor has taken over."""
        self._series[reason].inc()


PAUSE_FIRST = 1.0
PAUSE_LAST = 60.0
"""Seconds before another worker is started after one that could not start: doubled each time."""


class RollingArbiter(Arbiter):  # type: ignore[misc]  # untyped library
    """Made of a plain one by `take_over`, hence the defaults in the class."""

    memory = MemoryGuard(None)
    _superseded = 0
    """Workers up to this age have old settings."""
    _pause = PAUSE_FIRST
    _no_start_before = 0.0

    def manage_workers(self) -> None:
        """One step, at every turn of the loop: at least once a second."""
        step = next_step([self._standing(worker) for worker in self.WORKERS.values()], self.num_workers)
        if step.start and time.monotonic() >= self._no_start_before:
            for _ in range(step.start):
                self.spawn_worker()
        if step.replace:
            self._replace(step.replace)
        self.metrics_directory.add_up(self.WORKERS)

    def reload(self) -> None:
        """SIGHUP: new settings, for new workers, one after the other. Bad ones change nothing."""
        try:
            load_settings()
            self._take_configuration()
        except (SettingsError, SystemExit) as error:  # gunicorn exits where a configuration can not be read
            self.log.error("The new settings can not be taken, the old ones stay: %s", error)
            return
        self.log.reopen_files()
        self._superseded = self.worker_age
        self._no_start_before = 0.0
        self.cfg.on_reload(self)

    def handle_usr2(self) -> None:
        """Refuses what gunicorn does: a second master would need the metrics port and clear the counters' directory."""
        self.log.error(
            "SIGUSR2 is not supported: a second master can have neither the metrics port nor the counters of this one. "
            "For new settings send SIGHUP; for a new version start it beside this one, or restart"
        )

    def reap_workers(self) -> None:
        """As gunicorn, but a new worker that can not start does not end those that serve."""
        before = dict(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer as halt:
            if not any(worker.board.ready and not worker.board.replaced for worker in self.WORKERS.values()):
                raise
            self.log.error("%s Those that serve go on.", halt.reason)
            self.signal_chld(signal.SIGCHLD, None)  # gunicorn stopped in the middle: once more
        for worker in [worker for pid, worker in before.items() if pid not in self.WORKERS]:
            self._is_gone(worker)

    def _take_configuration(self) -> None:
        """Reads gunicorn's configuration anew; what is bound at the start stays."""
        sys.modules.pop("worker_config.gunicorn_conf", None)  # `-c python:worker_config.gunicorn_conf` imports it
        before = self.app.cfg
        try:
            self.app.reload()
        except SystemExit:
            self.app.cfg = before
            raise
        self.app.cfg.set("bind", before.bind)
        self.setup(self.app)

    def _standing(self, worker: Any) -> WorkerState:
        board = worker.board
        return WorkerState(worker.pid, worker.age, board.ready, board.replaced, self._due(worker))

    def _due(self, worker: Any) -> Reason | None:
        if worker.board.ready and self.memory.is_over(worker.pid):
            return Reason.MEMORY
        if worker.age <= self._superseded:
            return Reason.RELOAD
        return Reason.REQUESTS if worker.board.worn else None

    def _replace(self, worker: WorkerState) -> None:
        """Another serves in its place: it may go."""
        self.log.info("Replacing worker (pid:%s): %s", worker.pid, self._why(worker))
        self._pause = PAUSE_FIRST
        self.WORKERS[worker.pid].board.mark_replaced()
        self.kill_worker(worker.pid, signal.SIGTERM)
        if worker.due:
            self.replacements.add(worker.due)

    def _why(self, worker: WorkerState) -> str:
        match worker.due:
            case Reason.MEMORY:
                return self.memory.describe(worker.pid)
            case Reason.RELOAD:
                return "there are new settings"
            case Reason.REQUESTS:
                return "it has served MAX_REQUESTS"
            case None:
                return "there is one too many"  # SIGTTOU, or fewer WORKERS

    def _is_gone(self, worker: Any) -> None:
        self.memory.forget(worker.pid)
        if not worker.board.ready:
            worker.tmp.close()  # which gunicorn leaves undone where a start failed, as it does the hook
            self.cfg.child_exit(self, worker)
            self._no_start_before = time.monotonic() + self._pause
            self._pause = min(PAUSE_LAST, self._pause * 2)


def take_over(server: Any) -> None:
    """Makes gunicorn's master, which has not started yet, one of this kind."""
    server.__class__ = RollingArbiter
    server.replacements = ReplacementCount()


_READY, _WORN, _REPLACED = range(3)


class WorkerFlags:
    """The worker writes `ready` and `worn`, the master `replaced`. Each is said once and stays."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def ready(self) -> bool:
        """The worker serves."""
        return self._shared[_READY] == 1

    @property
    def worn(self) -> bool:
        """The worker has served MAX_REQUESTS and would like a successor."""
        return self._shared[_WORN] == 1

    @property
    def replaced(self) -> bool:
        """A successor serves: SIGTERM means to leave quietly, the replica stays."""
        return self._shared[_REPLACED] == 1

    def mark_ready(self) -> None:
        """The worker's."""
        self._shared[_READY] = 1

    def mark_recycle(self) -> None:
        """The worker's."""
        self._shared[_WORN] = 1

    def mark_replaced(self) -> None:
        """The master's, before it sends SIGTERM."""
        self._shared[_REPLACED] = 1


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


PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Has the kernel send `death_signal` when process `parent` is gone, and ends at once if it already is."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
