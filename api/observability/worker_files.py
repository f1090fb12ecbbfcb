"""What the workers of one master count in files of PROMETHEUS_MULTIPROC_DIR, read while workers start and end.

Files of workers that are gone are added up into one, or there would be more with every worker that is replaced. A
lock on the directory keeps that apart from reading: seen in between, totals would fall, which Prometheus takes for a
restart.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

GONE = "0"
"""What stands for the process id in the names of the files of all that are gone."""


class WorkerFilesCollector(MultiProcessCollector):  # type: ignore[misc]  # untyped library
    """The sums over all files that hold something.

    A worker that starts makes each file empty, and then gives it its length: read in between, it would fail a scrape.
    """

    def collect(self) -> Iterable[Any]:
        """Reads them."""
        with _locked(Path(self._path), fcntl.LOCK_SH):
            files = [str(file) for file in Path(self._path).glob("*.db") if _holds_something(file)]
            return list(self.merge(files))


def add_up_the_gone(directory: Path, pids: Iterable[int]) -> bool:
    """Moves what these counted into the files of all that are gone. Whether it did: it does not wait for a reader."""
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
