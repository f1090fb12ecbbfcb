"""The times of an endpoint's last requests."""

from __future__ import annotations

import sys

from api.ollama.pool_statistics import RECENT, RecentTimes

ROUNDS = 3


def test_the_last_times_count_and_each_takes_eight_bytes() -> None:
    times = RecentTimes()
    before = sys.getallocatedblocks()
    for number in range(ROUNDS * RECENT):
        times.add(number / 1000)
    times.add(None)
    assert sys.getallocatedblocks() - before < RECENT / 10
    last = ROUNDS * RECENT - 1
    found = times.percentiles()
    assert (found.p50, found.p99) == (last - RECENT // 2 + 1.0, last - round(0.01 * RECENT))
