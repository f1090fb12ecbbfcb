"""Reads the metrics files of a master's workers in PROMETHEUS_MULTIPROC_DIR while workers start and end.

The files of ended workers are merged into one; otherwise each replaced worker would add files. A lock on the directory
keeps merging and reading apart: in between, totals would fall, and Prometheus would see a restart.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

GONE = "0"
"""Stands for the process id in the names of the merged files."""
SUMMED: Final = frozenset(("counter", "histogram"))
DECIMALS: Final = 6
"""Of a total. Its last bits depend on the order in which the files are added up. Prometheus takes a total that falls by
one bit for a restart: `rate` then counts all of it again.
"""


class WorkerFilesCollector(MultiProcessCollector):  # type: ignore[misc]  # untyped library
    """The sums over all files that are not empty.

    A starting worker creates each file empty and then extends it. Reading it in between would fail a scrape.
    """

    def collect(self) -> Iterable[Any]:
        """Reads the files."""
        with _locked(Path(self._path), fcntl.LOCK_SH):
            files = [str(file) for file in Path(self._path).glob("*.db") if _holds_something(file)]
            metrics = list(self.merge(files))
        for metric in metrics:
            if metric.type in SUMMED:
                metric.samples = [sample._replace(value=round(sample.value, DECIMALS)) for sample in metric.samples]
        return metrics


def add_up_the_gone(directory: Path, pids: Iterable[int]) -> bool:
    """Merges these workers' files. False if a reader holds the lock: it does not wait."""
    try:
        with _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for pid in pids:
                for kind in ("counter", "histogram"):
                    _move(directory / f"{kind}_{pid}.db", directory / f"{kind}_{GONE}.db")
    except BlockingIOError:
        return False
    return True


def _move(source: Path, target: Path) -> None:
    if not _holds_something(source):
        source.unlink(missing_ok=True)
        return
    sums = MmapedDict(str(target))
    try:
        for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(source)):
            sums.write_value(key, sums.read_value(key)[0] + value, timestamp)
    finally:
        sums.close()
    source.unlink()


@contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _holds_something(file: Path) -> bool:
    with suppress(FileNotFoundError):
        return file.stat().st_size > 0
    return False
