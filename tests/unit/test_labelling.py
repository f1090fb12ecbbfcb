"""How many hits are sampled, and what happens to fresh answers while nobody compares them."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.cancellation import Background
from api.languages.identify import EVERY
from api.observability.metrics import Metrics
from api.observability.worker_facts import LoopLag
from api.ports.answer_quality import FalseHitRate, PolicyName, QualityState, Verdict
from api.ports.question import Query
from api.ports.telemetry import Telemetry
from api.quality.comparator import Comparator
from api.quality.evidence import grouped
from api.quality.policies import sampling_rate, spare_rate
from api.query import labels, shadow_calls
from api.query.cache import Lookup
from api.query.generate import FreshAnswer
from api.query.labels import MOST_EARNED, MOST_REST_SECONDS, PER_MISS, Allowance, LabelCollector, Labelling
from api.query.shadow_calls import SHADOWS, ShadowCalls, SpareTime
from api.values import CachedAnswer, CacheKind, CacheMatch, Generation, GenerationEnd, Usage
from tests.support.waiting import wait_until_async

FINE, WRONG = FalseHitRate(0.01, 0.0, 0.05, 80), FalseHitRate(0.2, 0.05, 0.5, 5)


@pytest.mark.parametrize(
    ("base", "state", "rate"),
    [
        (0.01, QualityState(), 0.01),
        (0.01, QualityState(rate=FINE), 0.01),
        (0.01, QualityState(rate=WRONG), 0.2),
        (0.01, QualityState(rate=FINE, level=1), 0.2),
        (0.01, QualityState(rate=FINE, suspected=True), 0.5),
        (0.0, QualityState(suspected=True), 0.0),
        (0.1, QualityState(rate=WRONG), 0.25),
        (1.0, QualityState(rate=WRONG), 1.0),
        (0.0, QualityState(rate=WRONG), 0.0),
    ],
)
def test_more_hits_are_sampled_while_the_error_is_in_doubt(base: float, state: QualityState, rate: float) -> None:
    assert sampling_rate(base, state) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("base", "state", "rate"),
    [
        (0.01, QualityState(rate=FINE), 0.03),
        (0.01, QualityState(rate=WRONG), 0.2),
        (0.01, QualityState(suspected=True), 0.5),
        (0.0, QualityState(), 0.0),
        (0.2, QualityState(), 0.25),
        (1.0, QualityState(), 1.0),
    ],
)
def test_a_fleet_that_makes_few_shadow_calls_makes_more(base: float, state: QualityState, rate: float) -> None:
    assert spare_rate(base, state) == pytest.approx(rate)


class Recording(Telemetry):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def shadow_called(self, outcome: str) -> None:
        self.calls.append(outcome)


def shadow(telemetry: Telemetry, quality: Any = QualityState, limit: Any = None) -> ShadowCalls:
    none: Any = None
    labelling = Labelling(none, none, none, telemetry, none)
    spare = SpareTime(lambda: True, lambda: False)
    return ShadowCalls(labelling, none, limit, spare, quality, rate=0.01, per_minute=30)


async def test_the_rate_follows_what_the_fleet_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_calls, "RATE_SECONDS", 0.001)
    state = QualityState()
    calls = shadow(Telemetry(), lambda: state)
    following = asyncio.create_task(calls.keep_rate())

    async def is_raised() -> bool:
        return calls.rates["semantic"] > 0.1 and calls.rates["exact"] == 0.01

    async def is_normal() -> bool:
        return calls.rates["semantic"] == pytest.approx(0.03)

    state = QualityState(rate=WRONG)
    await wait_until_async(is_raised)
    state = QualityState(rate=FINE)
    await wait_until_async(is_normal)
    following.cancel()


class NoMore:
    """A limit that is reached. It keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def admit_shadow(self, per_minute: int) -> bool:
        self.asked.append(per_minute)
        return False


@pytest.mark.parametrize(
    ("state", "kind", "less"),
    [
        (QualityState(), "semantic", 2 / 3),
        (QualityState(suspected=True), "semantic", 0.0),
        (QualityState(), "exact", 0.0),
    ],
)
async def test_what_is_sampled_above_the_usual_rate_gets_a_third_of_the_shadow_calls(
    monkeypatch: pytest.MonkeyPatch, state: QualityState, kind: CacheKind, less: float
) -> None:
    monkeypatch.setattr(shadow_calls, "random", random.Random(1))
    limit = NoMore()
    calls = shadow(Telemetry(), lambda: state, limit)
    match = CacheMatch(CachedAnswer("e", "q", "a", "m", (), Usage(), 1, 2), kind, 0.95, 1)
    async with asyncio.timeout(10), Background() as background:
        background.start(calls.keep_rate)
        background.start(calls.keep_calling)
        await asyncio.sleep(0)
        for number in range(600):
            calls.sample(Query("q", "t", "m"), Lookup(match=match), stale=False)
            while len(limit.asked) <= number:
                await asyncio.sleep(0)
    assert limit.asked.count(10) / 600 == pytest.approx(less, abs=0.06)
    assert set(limit.asked) <= {10, 30}


def test_samples_that_do_not_fit_are_dropped_and_counted() -> None:
    telemetry = Recording()
    calls = shadow(telemetry)
    match = CacheMatch(CachedAnswer("e", "q", "a", "m", (), Usage(), 1, 2), "exact", 1.0, 1)
    for _ in range(SHADOWS + 3):
        calls.sample(Query("q", "t", "m"), Lookup(match=match), stale=False)
    assert telemetry.calls == ["queue_full"] * 3
    assert calls.probability(0.01) < 0.01


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_under_the_limit_a_compared_hit_stands_for_as_many_at_every_rate(rate: float) -> None:
    calls = shadow(Telemetry())
    assert calls.probability(rate) == rate, "nothing was left out yet"
    hits, limit = 20_000, 30
    for number in range(round(hits * rate)):
        calls._ended(rate, "compared" if number < limit else "limited")
    assert calls.probability(rate) == pytest.approx(limit / hits, rel=0.05)
    for _ in range(1_000):
        calls._ended(rate, "breaker_open")
    assert calls.probability(rate) == pytest.approx(limit / hits, rel=0.05), "an outage leaves out all alike"


async def test_a_busy_worker_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PAUSE_SECONDS", 0.001)
    none: Any = None
    looks = iter([True, True, True, False])
    labelling = Labelling(none, none, none, Telemetry(), none, busy=lambda: next(looks))
    await asyncio.wait_for(labelling.calm(), 5)
    assert next(looks, None) is None, "it looked until it was calm"


async def test_a_worker_is_busy_while_its_event_loop_is_late() -> None:
    lag = LoopLag(Metrics())
    measuring = asyncio.create_task(lag.keep_measuring())

    async def is_calm() -> bool:
        return not lag.is_busy

    async def is_busy() -> bool:
        time.sleep(0.2)
        await asyncio.sleep(0)
        return lag.is_busy

    await wait_until_async(is_calm)
    await wait_until_async(is_busy)
    await wait_until_async(is_calm)
    measuring.cancel()


# -- when the worker stops ---------------------------------------------------------------------------------------------


class Quick:
    """A comparator. `took`: what `time.perf_counter` shows around each comparison."""

    name, version = "quick", "1"

    async def compare(self, fresh: Any, cached: Any, *, tenant: str) -> Any:
        return SimpleNamespace(verdict=Verdict.SAME)


@pytest.mark.parametrize(("took", "rest"), [(0.02, 0.08), (3.0, MOST_REST_SECONDS)])
async def test_a_comparison_leaves_most_of_the_time_to_users(
    monkeypatch: pytest.MonkeyPatch, took: float, rest: float
) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    none: Any = None
    labelling = Labelling(none, none, cast("Comparator", Quick()), Telemetry(), none)
    times = iter([0.0, took])
    monkeypatch.setattr(labels, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(labels, "asyncio", SimpleNamespace(sleep=sleep))
    await labelling.compared(grouped(["g"], is_stored=True), [none, none], "acme")
    assert [seconds for seconds in rests if seconds] == [pytest.approx(rest)]


@pytest.mark.parametrize(("misses_a_second", "share"), [(100, 0.21), (20, 0.05), (1, 0.012)])
def test_comparing_takes_a_bounded_share_of_a_worker(misses_a_second: int, share: float) -> None:
    """A comparison takes 20 ms, and a miss without it about 8."""
    now, seconds, spent = 0.0, 1_000, 0.0
    allowance = Allowance(PER_MISS, lambda: now)
    for _ in range(misses_a_second * seconds):
        now += 1 / misses_a_second
        allowance.earn()
        if not allowance.is_spent:
            allowance.spend(0.02)
            spent += 0.02
    assert 0.99 * share * seconds < spent <= share * seconds + MOST_EARNED + 0.02


def test_nothing_is_saved_up_for_longer_than_a_burst() -> None:
    now = 0.0
    allowance = Allowance(PER_MISS, lambda: now)
    now = 1e6
    allowance.earn()
    allowance.spend(MOST_EARNED)
    assert allowance.is_spent


async def test_a_miss_beyond_the_allowance_is_counted_and_searches_for_nothing() -> None:
    none: Any = None
    telemetry = Losses()
    collector = LabelCollector(Labelling(none, none, none, telemetry, EVERY, policy=PolicyName.OBSERVE), none)
    collector._allowance.spend(2 * MOST_EARNED)
    end = GenerationEnd("m", "stop", Usage())
    fresh = FreshAnswer(Query("Why?", "t", "m"), Lookup(), Generation("Because.", end, 0.0), (), None)
    await collector._collect(fresh)
    assert telemetry.lost == ["allowance_spent"]


class Slow(LabelCollector):
    """Compares an answer when it may; `None` never."""

    def __init__(self, labelling: Labelling, queue: asyncio.Queue[Any]) -> None:
        super().__init__(labelling, queue)
        self.may, self.compared = asyncio.Event(), 0

    async def _collect(self, fresh: Any) -> None:
        await (self.may.wait() if fresh is not None else asyncio.Event().wait())
        self.compared += 1


class Losses(Telemetry):
    def __init__(self) -> None:
        self.lost: list[str] = []

    def label_dropped(self, reason: str) -> None:
        self.lost.append(reason)

    def shadow_called(self, outcome: str) -> None:
        self.lost.append(outcome)


async def test_comparisons_that_wait_when_the_worker_stops_are_finished() -> None:
    none: Any = None
    telemetry, queue = Losses(), asyncio.Queue[Any](8)
    collector = Slow(Labelling(none, none, none, telemetry, none), queue)
    for number in range(5):
        queue.put_nowait(number)
    async with Background() as background:
        background.start(collector.keep_collecting)
        draining = asyncio.create_task(collector.drain())
        await asyncio.sleep(0)
        collector.may.set()
        await draining
        assert collector.compared == 5
    collector.count_left()
    assert telemetry.lost == []


async def test_what_is_lost_when_the_worker_stops_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "DRAIN_SECONDS", 0.01)
    none: Any = None
    telemetry, queue = Losses(), asyncio.Queue[Any](8)
    collector = Slow(Labelling(none, none, none, telemetry, none), queue)
    for stuck in (None, 1, 2):
        queue.put_nowait(stuck)
    async with Background() as background:
        background.start(collector.keep_collecting)
        await collector.drain()
    assert telemetry.lost == ["stopped"], "the one under way"
    collector.count_left()
    assert telemetry.lost == ["stopped"] * 3
    calls = shadow(telemetry)
    match = CacheMatch(CachedAnswer("e", "q", "a", "m", (), Usage(), 1, 2), "exact", 1.0, 1)
    calls.sample(Query("q", "t", "m"), Lookup(match=match), stale=False)
    calls.count_left()
    assert telemetry.lost == ["stopped"] * 4
