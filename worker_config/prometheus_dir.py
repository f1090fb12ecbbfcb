"""The directory in which the workers of one master count for Prometheus (PROMETHEUS_MULTIPROC_DIR).

It is made before the first fork and before anything imports prometheus_client, which reads the variable then.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

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
