"""How minutes of the history are counted, merged and read."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest

from api.breaker.state import State, Transition
from api.errors import InvalidRequest
from api.observability.history_figures import (
    BOUNDS,
    BOUNDS_MS,
    BUCKETS,
    MinuteCounts,
    merged,
    percentile,
    point,
    read_row,
    row_of,
    state_times,
)
from api.observability.history_keeper import MAX_STEPS, HistoryReader, Observed
from api.redis_store.stores.history_store import MINUTE_MS, hour_name, minute_name

NOON = 29_000_000
"""A minute."""


def exact(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]


def buckets(milliseconds: list[float]) -> Counter[str]:
    return Counter(BUCKETS[bisect_left(BOUNDS_MS, ms)] for ms in milliseconds)


# -- latency ----------------------------------------------------------------------------------------------------------


def test_neighboring_bounds_differ_by_about_a_quarter() -> None:
    assert (BOUNDS_MS[0], BOUNDS_MS[-1], len(BUCKETS)) == (0.1, 800_000, len(BOUNDS) + 1)
    assert all(1.2 < high / low < 1.3 for low, high in pairwise(BOUNDS_MS))


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_a_percentile_of_merged_workers_is_within_a_bucket_of_the_exact_one(percent: float) -> None:
    chance = random.Random(17)
    workers = [[chance.lognormvariate(mean, 0.8) for _ in range(2_000)] for mean in (0.5, 3.0, 6.0)]
    rows = [{"latency": {"hit": dict(buckets(values))}} for values in workers]
    found = percentile(merged(rows)["latency"]["hit"], percent)
    assert found is not None
    assert found == pytest.approx(exact([ms for values in workers for ms in values], percent), rel=0.26)


def test_a_percentile_without_counts_is_unknown_and_beyond_the_last_bound_is_the_last_bound() -> None:
    assert percentile({}, 50) is None
    assert percentile({"inf": 3}, 50) == BOUNDS_MS[-1]
    assert percentile({"2": 4}, 50) == pytest.approx(1.8)


# -- counting ---------------------------------------------------------------------------------------------------------


def counted(counts: MinuteCounts, times: int = 1) -> None:
    counts.open["hit", "exact", 0] += times
    counts.open["tokens:prompt"] += 7 * times


def test_an_answer_is_counted_by_status_tier_and_latency() -> None:
    counts = MinuteCounts()
    counts.turn(NOON, up=True)
    counts.open["hit", "semantic", bisect_left(BOUNDS, 0.0021)] += 2
    counts.open["miss", None, len(BOUNDS)] += 1
    counts.open["errors:bulkhead-full"] += 1
    assert counts.take(NOON) == {
        NOON: {
            "queries:hit": 2, "latency:hit:2.5": 2, "hits:semantic": 2,
            "queries:miss": 1, "latency:miss:inf": 1, "errors:bulkhead-full": 1,
        }
    }  # fmt: skip
    assert counts.is_empty


def test_counts_stay_in_their_minute_until_they_are_sent() -> None:
    counts = MinuteCounts()
    counts.turn(NOON, up=True)
    counted(counts)
    counts.turn(NOON + 1, up=True)
    counted(counts, 2)
    taken = counts.take(NOON + 1)
    assert {minute: fields["queries:hit"] for minute, fields in taken.items()} == {NOON: 1, NOON + 1: 2}


def test_a_minute_without_redis_is_dropped_and_its_neighbors_are_complete() -> None:
    lost = Counter[str]()
    counts = MinuteCounts(lambda: lost.update(["minute"]))
    counts.turn(NOON, up=True)
    counts.turn(NOON, up=False)  # Redis is lost after a part of the minute
    counted(counts)
    for _ in range(3):
        counts.turn(NOON + 1, up=False)
        counted(counts)
    counts.turn(NOON + 2, up=False)
    counted(counts)
    counts.turn(NOON + 2, up=True)
    counted(counts)
    taken = counts.take(NOON + 2)
    assert {minute: fields["queries:hit"] for minute, fields in taken.items()} == {NOON: 1, NOON + 2: 2}
    assert lost == {"minute": 1}


def test_nothing_is_kept_before_redis_has_told_its_time() -> None:
    counts = MinuteCounts()
    counted(counts)
    counts.turn(None, up=False)
    assert counts.is_empty
    counted(counts)
    counts.turn(NOON, up=True)
    assert counts.take(NOON)[NOON]["queries:hit"] == 1


def test_before_redis_has_told_its_time_a_lost_minute_counts_once() -> None:
    lost, now = Counter[str](), 0.0
    counts = MinuteCounts(lambda: lost.update(["minute"]), lambda: now)
    for _ in range(480):  # two minutes
        counted(counts)
        counts.turn(None, up=False)
        now += 0.25
    assert lost == {"minute": 2}


# -- merging ----------------------------------------------------------------------------------------------------------


def test_minutes_add_up_and_the_latest_state_counts() -> None:
    early = row_of({"queries:hit": "2", "workers": "4", "breaker_ms": "{}", "false_hits": '{"estimate":0.1}'})
    late = row_of({"queries:hit": "3", "queries:miss": "1", "workers": "3", "false_hits": '{"estimate":0.2}'})
    assert merged([early, late]) == {
        "queries": {"hit": 5, "miss": 1}, "workers": 3, "breaker_ms": {}, "false_hits": {"estimate": 0.2},
    }  # fmt: skip


def test_figures_of_other_releases_are_ignored() -> None:
    odd = row_of({"queries:hit": "many", "queries:miss": "1", "later:kind": '"text"', "later": "5", "workers": "2"})
    shown = point("now", merged([odd, row_of({"queries:miss": "1", "later": "5"})]), "ollama")
    assert (shown["queries"]["hit"], shown["queries"]["miss"], shown["workers"]) == (0, 2, 2)
    assert read_row(b"[1]") == read_row(b"{") == {}


def test_a_point_shows_every_status_means_and_shares() -> None:
    row = row_of(
        {
            "samples": "2", "queries:hit": "4", "hits:exact": "4", "latency:hit:2": "4", "workers": "2",
            "pool:in_use": "6", "pool:waiting": "1", "pool:limit": "60", "restarts": "1",
        }
    )  # fmt: skip
    shown = point("now", {**row, "breaker_ms": {"ollama": {"CLOSED": 59_000, "OPEN": 1_000}}}, "ollama")
    assert shown["queries"] == {"hit": 4, "miss": 0, "stale": 0, "bypass": 0, "coalesced": 0, "error": 0, "left": 0}
    assert shown["latency_ms"] == {"hit": {"p50": 1.8, "p95": 1.98, "p99": 1.996}}
    assert shown["pool"] == {"in_use": 3.0, "waiting": 0.5, "limit": 30.0, "utilization": 0.1}
    assert shown["breaker_seconds"] == {"CLOSED": 59.0, "OPEN": 1.0, "HALF_OPEN": 0.0}
    assert (shown["tokens"], shown["workers"], shown["restarts"]) == ({"prompt": 0, "completion": 0}, 2, 1)


def changed(at_ms: int, before: State, after: State) -> Transition:
    return Transition(before, after, "test", "w", 1, 0, at_ms)


def test_the_time_in_each_state_comes_from_the_log() -> None:
    opened = changed(10_000, State.CLOSED, State.OPEN)
    probing = changed(70_000, State.OPEN, State.HALF_OPEN)
    closed = changed(71_500, State.HALF_OPEN, State.CLOSED)
    log = [opened, probing, closed]
    assert state_times(log, State.CLOSED, 0, 60_000) == {"CLOSED": 10_000, "OPEN": 50_000}
    assert state_times(log, State.CLOSED, 60_000, 120_000) == {"OPEN": 10_000, "HALF_OPEN": 1_500, "CLOSED": 48_500}
    assert state_times(log, State.CLOSED, 120_000, 180_000) == {"CLOSED": 60_000}
    assert state_times([], State.OPEN, 0, 60_000) == {"OPEN": 60_000}


# -- reading ----------------------------------------------------------------------------------------------------------


class StoredMinutes:
    """A store with some minutes. The current one is `current`, and half of it is over."""

    def __init__(self, rows: dict[int, Any], live: dict[int, dict[str, str]], current: int) -> None:
        self._rows, self._live, self._current = rows, live, current
        self.asked: list[tuple[int, int]] = []

    async def now_ms(self) -> int:
        return self._current * MINUTE_MS + MINUTE_MS // 2

    async def rows(self, first: int, last: int) -> dict[int, bytes]:
        self.asked.append((first, last))
        return {minute: orjson.dumps(row) for minute, row in self._rows.items() if first <= minute <= last}

    async def live(self, minutes: list[int]) -> dict[int, dict[str, str]]:
        return {minute: fields for minute, fields in self._live.items() if minute in minutes}


def reader(rows: dict[int, Any], live: dict[int, dict[str, str]] | None = None) -> HistoryReader:
    async def no_workers() -> list[dict[str, str]]:
        return []

    store = StoredMinutes(rows, live or {}, NOON)
    return HistoryReader(store, Observed(no_workers, 0, {}, {}, lambda: None), "ollama")  # type: ignore[arg-type, return-value]


async def points(
    rows: dict[int, Any], live: dict[int, dict[str, str]] | None = None, minutes: int = 5, step: int | None = None
) -> list[dict[str, Any]]:
    start = (NOON - minutes + 1) * MINUTE_MS
    found: list[dict[str, Any]] = orjson.loads(await reader(rows, live).read(start, None, step))["points"]
    return found


def kinds(found: list[dict[str, Any]]) -> Iterator[Any]:
    for one in found:
        yield "gap" if one.get("gap") else one["queries"]["hit"]


async def test_a_minute_without_a_writer_is_a_gap_and_one_without_a_query_is_not() -> None:
    found = await points({NOON - 4: {"queries": {"hit": 3}}, NOON - 1: {"samples": 12}}, {NOON: {"queries:hit": "1"}})
    assert list(kinds(found)) == [3, "gap", "gap", 0, 1]
    assert found[1] == {"at": found[1]["at"], "gap": True}
    assert [one.get("partial", False) for one in found] == [False] * 4 + [True]


async def test_nothing_is_said_of_a_minute_that_has_just_begun() -> None:
    assert list(kinds(await points({NOON - 1: {"samples": 12}}, minutes=2))) == [0]


async def test_a_larger_step_says_how_many_minutes_are_missing() -> None:
    rows = {NOON - back: {"queries": {"hit": 1}} for back in (10, 9, 7)}
    found = orjson.loads(await reader(rows).read((NOON - 10) * MINUTE_MS, (NOON - 1) * MINUTE_MS, 300))["points"]
    assert [one.get("queries", {}).get("hit") for one in found] == [3, None]
    assert (found[0]["missing_minutes"], found[1].get("gap")) == (2, True)


async def test_buckets_add_the_counts_behind_the_latencies() -> None:
    rows = {NOON - back: {"latency": {"hit": {"2": back}}} for back in (3, 2)}
    start, end = (NOON - 3) * MINUTE_MS, NOON * MINUTE_MS
    for asked, expected in ((True, {"hit": {"2": 5}}), (False, None)):
        found = orjson.loads(await reader(rows).read(start - MINUTE_MS, end, 300, asked))
        assert found["points"][-1].get("latency_buckets_ms") == expected
        assert ("latency_bounds_ms" in found) is asked


async def test_the_range_defaults_to_the_last_hour_and_the_step_to_a_minute() -> None:
    found = orjson.loads(await reader({}).read(None, None, None))
    assert (found["step_seconds"], len(found["points"])) == (60, 60)


async def test_the_step_grows_with_the_range_and_an_impossible_range_is_refused() -> None:
    two_days = (NOON - 48 * 60) * MINUTE_MS
    found = orjson.loads(await reader({}).read(two_days, None, None))
    assert (found["step_seconds"], len(found["points"])) == (120, MAX_STEPS)
    for asked in ((two_days, None, 60), ((NOON + 5) * MINUTE_MS, None, None), (NOON * MINUTE_MS, 0, None)):
        with pytest.raises(InvalidRequest):
            await reader({}).read(*asked)


async def test_years_ago_cost_no_more_than_two_days() -> None:
    store = StoredMinutes({}, {}, NOON)
    old = HistoryReader(store, Observed(None, 0, {}, {}, None), "ollama")  # type: ignore[arg-type]
    found = orjson.loads(await old.read(0, None, None))
    assert len(found["points"]) <= MAX_STEPS + 1
    assert store.asked == [(NOON - 48 * 60, NOON)]


def test_names_of_hours_and_minutes_are_utc() -> None:
    assert (hour_name(29_737_867), minute_name(29_737_867)) == ("2026-07-17T07", "2026-07-17T07-07")
