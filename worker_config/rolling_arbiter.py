"""gunicorn's master, which replaces workers without a gap: the successor serves before the predecessor leaves.

gunicorn itself lets a worn worker die first, signals all old workers at once on SIGHUP, waits for them meanwhile, and
ends itself when the new configuration is bad or a new worker can not start. It has no setting for the master's class,
so the configuration's first hook gives it this one (`take_over`). Whom to start and to replace is `succession`'s.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from api.errors import SettingsError
from api.settings import load_settings
from worker_config.memory_guard import MemoryGuard
from worker_config.replacement_count import ReplacementCount
from worker_config.succession import Reason, Standing, next_step

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

    def _standing(self, worker: Any) -> Standing:
        board = worker.board
        return Standing(worker.pid, worker.age, board.ready, board.replaced, self._due(worker))

    def _due(self, worker: Any) -> Reason | None:
        if worker.board.ready and self.memory.is_over(worker.pid):
            return Reason.MEMORY
        if worker.age <= self._superseded:
            return Reason.RELOAD
        return Reason.REQUESTS if worker.board.worn else None

    def _replace(self, worker: Standing) -> None:
        """Another serves in its place: it may go."""
        self.log.info("Replacing worker (pid:%s): %s", worker.pid, self._why(worker))
        self._pause = PAUSE_FIRST
        self.WORKERS[worker.pid].board.say_replaced()
        self.kill_worker(worker.pid, signal.SIGTERM)
        if worker.due:
            self.replacements.add(worker.due)

    def _why(self, worker: Standing) -> str:
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
