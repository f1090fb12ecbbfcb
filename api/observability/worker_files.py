"""Reads what the workers of one master count in files of PROMETHEUS_MULTIPROC_DIR, also while workers start and end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import MultiProcessCollector


class WorkerFilesCollector(MultiProcessCollector):  # type: ignore[misc]  # untyped library
    """A worker that starts makes each file empty, and then gives it its length: read in between, it fails a scrape."""

    def collect(self) -> Iterable[Any]:
        """The sums over all files that hold something."""
        return self.merge([str(file) for file in Path(self._path).glob("*.db") if _holds_something(file)])  # type: ignore[no-any-return]


def _holds_something(file: Path) -> bool:
    with suppress(FileNotFoundError):  # a worker ended
        return file.stat().st_size > 0
    return False
