"""The totals over the metrics files of several workers."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from api.observability.worker_files import WorkerFilesCollector, add_up_the_gone

KEY = mmap_key("seconds", "seconds_total", [], [], "Seconds.")


def total(directory: Path) -> float:
    (metric,) = WorkerFilesCollector(CollectorRegistry(), str(directory)).collect()
    value: float = metric.samples[0].value
    return value


@pytest.mark.parametrize("seconds", [*permutations((0.1, 0.2, 0.3, 2.45))])
def test_a_total_does_not_fall_by_a_bit_when_workers_end(tmp_path: Path, seconds: tuple[float, ...]) -> None:
    for pid, value in enumerate(seconds, 1):
        file = MmapedDict(str(tmp_path / f"counter_{pid}.db"))
        file.write_value(KEY, value, 0.0)
        file.close()
    totals = [total(tmp_path)]
    for pid in range(len(seconds), 0, -1):
        assert add_up_the_gone(tmp_path, [pid])
        totals.append(total(tmp_path))
    assert totals == [3.05] * 5
