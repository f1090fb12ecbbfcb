"""How many hits are sampled, and what happens to fresh answers while nobody compares them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from api.observability.metrics import Metrics
from api.observability.worker_facts import LoopLag
from api.ports.quality import FalseHitRate, QualityState
from api.ports.question import Query
from api.ports.telemetry import Telemetry
from api.query import labels
from api.query.cache import Lookup
from api.query.labels import SHADOWS, Labelling, ShadowCalls, SpareTime, sampling_rate
from api.values import CachedAnswer, CacheMatch, Usage
from tests.support.waiting import wait_until_async

FINE, WRONG = FalseHitRate(0.01, 0.0, 0.05, 80), FalseHitRate(0.2, 0.05, 0.5, 5)


@pytest.mark.parametrize(
    ("base", "state", "rate"),
    [
        (0.01, QualityState(), 0.01),
        (0.01, QualityState(rate=FINE), 0.01),
        (0.01, QualityState(rate=WRONG), 0.2),
        (0.01, QualityState(rate=FINE, level=1), 0.2),
        (0.1, QualityState(rate=WRONG), 0.25),
        (1.0, QualityState(rate=WRONG), 1.0),
        (0.0, QualityState(rate=WRONG), 0.0),
    ],
)
def test_more_hits_are_sampled_while_the_error_is_in_doubt(base: float, state: QualityState, rate: float) -> None:
    assert sampling_rate(base, state) == pytest.approx(rate)


class Recording(Telemetry):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def shadow_called(self, outcome: str) -> None:
        self.calls.append(outcome)


def shadow(telemetry: Telemetry, quality: Any = QualityState) -> ShadowCalls:
    none: Any = None
    labelling = Labelling(none, none, none, telemetry, none)
    spare = SpareTime(lambda: True, lambda: False)
    return ShadowCalls(labelling, none, none, spare, quality, rate=0.01, per_minute=30)


async def test_the_rate_follows_what_the_fleet_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "RATE_SECONDS", 0.001)
    state = QualityState()
    calls = shadow(Telemetry(), lambda: state)
    following = asyncio.create_task(calls.keep_rate())

    async def is_raised() -> bool:
        return calls.rate > 0.1

    async def is_normal() -> bool:
        return calls.rate == 0.01

    state = QualityState(rate=WRONG)
    await wait_until_async(is_raised)
    state = QualityState(rate=FINE)
    await wait_until_async(is_normal)
    following.cancel()


def test_samples_that_do_not_fit_are_dropped_and_counted() -> None:
    telemetry = Recording()
    calls = shadow(telemetry)
    match = CacheMatch(CachedAnswer("e", "q", "a", "m", (), Usage(), 1, 2), "exact", 1.0, 1)
    for _ in range(SHADOWS + 3):
        calls.sample(Query("q", "t", "m"), Lookup(match=match), stale=False)
    assert telemetry.calls == ["queue_full"] * 3
    assert calls.probability(calls.rate) < calls.rate


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
