"""Looking early and often does not lie: simulated experiments with and without a difference, looked at 100 times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api.observability.experiment_figures import (
    LEAST_SAMPLES,
    MEASURES,
    Mean,
    VariantFigures,
    compared,
    difference,
    figures_of,
    interval,
    judged,
    mean_of,
    report,
)
from api.observability.history_figures import BOUNDS_MS, BUCKETS
from api.ports.answer_quality import FalseHitRate, QualityState
from api.ports.experiment import GROUPS, Experiment, Segment, VariantSpec

LOOKS = 100
RUNS = 100
REQUESTS = 3_000
SIMULATED = pytest.mark.once(reason="a simulation with a seed")


class Traffic:
    """Simulated requests of two variants. Clients differ: in hit rate, latency, errors and votes.

    Each client has one variant. `habits`: how far their hit rates are apart. `skew`: how much more some of them ask. A
    request is an answer or an error; an answer is a hit or a miss, sometimes judged.
    """

    def __init__(
        self,
        chance: np.random.Generator,
        hit_rates: Sequence[float],
        clients: int,
        errors: Sequence[float] = (0.01, 0.01),
        habits: float = 0.1,
        skew: float = 0.5,
    ) -> None:
        self._chance = chance
        self._clients = clients
        self.variants = chance.permutation(clients) % 2
        self._groups = chance.integers(0, GROUPS, clients)
        spread = np.clip(chance.normal(0, habits, clients), -2 * habits, 2 * habits)
        self._hit = np.clip(np.array(hit_rates)[self.variants] + spread, 0, 1)
        self._error = np.array(errors)[self.variants]
        weights = 1 / np.arange(1, clients + 1) ** skew
        self._often = weights / weights.sum()
        self.figures = (VariantFigures(), VariantFigures())

    def more(self, requests: int) -> None:
        """Adds requests to the figures."""
        chance = self._chance
        clients = chance.choice(self._clients, requests, p=self._often)
        failed = chance.random(requests) < self._error[clients]
        hit = chance.random(requests) < self._hit[clients]
        ms = np.exp(chance.normal(np.where(hit, 1.0, 6.5), 0.5))
        judged = chance.random((2, requests)) < 0.05
        wrong = chance.random((2, requests)) < 0.05
        places = np.searchsorted(BOUNDS_MS, ms)
        for one in range(requests):
            client = clients[one]
            figures = self.figures[self.variants[client]]
            group = figures.groups[str(self._groups[client])]
            if failed[one]:
                group["error"] += 1
                continue
            group.update({"answer": 1, "log": round(1000 * math.log(ms[one])), "hit" if hit[one] else "miss": 1})
            figures.totals["latency"][BUCKETS[places[one]]] += 1
            if hit[one] and judged[0, one]:
                group["different" if wrong[0, one] else "same"] += 1
            if judged[1, one]:
                group["bad" if wrong[1, one] else "good"] += 1


def verdict_of(traffic: Traffic) -> str:
    return judged(compared(traffic.figures[1], traffic.figures[0], others=1))


def says_something(verdict: str) -> bool:
    return verdict not in ("too early", "no difference shown")


def a_fixed_sample_test_says_something(traffic: Traffic) -> bool:
    """Returns what a test for a fixed number of independent requests says about the hit rates, at 95 %."""
    one, control = (figures.mean(MEASURES[0]) for figures in traffic.figures)
    if one is None or control is None or min(one.samples, control.samples) < LEAST_SAMPLES:
        return False
    alone = math.sqrt(sum(mean.value * (1 - mean.value) / mean.samples for mean in (one, control)))
    return abs(one.value - control.value) > 1.96 * alone


@pytest.mark.slow
@SIMULATED
@pytest.mark.parametrize(("clients", "habits", "skew"), [(40, 0.1, 0.5), (1_000, 0.1, 0.5), (300, 0.3, 1.0)])
def test_a_hundred_looks_at_no_difference_show_one_in_at_most_5_percent_of_runs(
    clients: int, habits: float, skew: float
) -> None:
    chance = np.random.default_rng(17)
    lies: Counter[str] = Counter()
    for _ in range(RUNS):
        traffic, said = Traffic(chance, (0.4, 0.4), clients, habits=habits, skew=skew), set()
        for _ in range(LOOKS):
            traffic.more(REQUESTS // LOOKS)
            if says_something(verdict_of(traffic)):
                said.add("sequential")
            if a_fixed_sample_test_says_something(traffic):
                said.add("fixed")
        lies.update(said)
        assert verdict_of(traffic) != "too early"
    assert lies["sequential"] <= 0.05 * RUNS, lies
    assert lies["fixed"] > 0.2 * RUNS, "the same traffic misleads an ordinary test, so this one could fail"


@pytest.mark.slow
@SIMULATED
@pytest.mark.parametrize(
    ("hit_rates", "errors", "requests", "verdict", "measure"),
    [
        ((0.4, 0.5), (0.01, 0.01), 4_000, "better", "hit_rate"),
        ((0.3, 0.35), (0.01, 0.01), 25_000, "better", "hit_rate"),
        ((0.4, 0.4), (0.01, 0.04), 6_000, "worse", "error_rate"),
    ],
)
def test_a_real_difference_is_found_within_the_stated_requests(
    hit_rates: tuple[float, float], errors: tuple[float, float], requests: int, verdict: str, measure: str
) -> None:
    chance = np.random.default_rng(18)
    found = 0
    for _ in range(40):
        traffic = Traffic(chance, hit_rates, 1_000, errors)
        for _ in range(LOOKS):
            traffic.more(requests // LOOKS)
            measures = compared(traffic.figures[1], traffic.figures[0], others=1)
            if says_something(judged(measures)):
                shown = {one.measure.name for one in measures if one.good is not None}
                found += judged(measures) == verdict and bool({measure, "latency"} & shown)
                break
    assert found >= 36


@pytest.mark.slow
def test_an_interval_contains_the_true_mean_at_all_looks_together() -> None:
    chance = np.random.default_rng(19)
    missed = 0
    for _ in range(200):
        groups = [(0.0, 0.0)] * GROUPS
        outside = False
        for _ in range(LOOKS):
            place = int(chance.integers(GROUPS))
            events = int(chance.binomial(20, 0.1))
            groups[place] = (groups[place][0] + events, groups[place][1] + 20)
            mean = mean_of(groups)
            assert mean is not None
            low, high = interval(mean)
            outside = outside or (mean.samples >= LEAST_SAMPLES and not low <= 0.1 <= high)
        missed += outside
    assert missed <= 10


# -- means ------------------------------------------------------------------------------------------------------------


def test_a_mean_without_samples_is_unknown_and_one_without_events_still_has_an_error() -> None:
    assert mean_of([]) is None
    assert mean_of([(0, 0)] * 5) is None
    rare = mean_of([(0, 10)] * 10)
    assert rare is not None
    assert (rare.value, rare.samples, rare.groups) == (0, 100, 10)
    assert rare.error > 0.005
    low, high = interval(rare)
    assert low < 0 < high


def test_units_that_differ_make_the_error_larger_than_that_of_independent_requests() -> None:
    alike = mean_of([(5, 10)] * 20)
    apart = mean_of([(0, 10), (10, 10)] * 10)
    assert alike is not None
    assert apart is not None
    assert alike.value == apart.value == 0.5
    assert apart.error > 2 * alike.error


def test_a_difference_needs_enough_requests_of_enough_groups() -> None:
    good, bad = Mean(0.9, 0.001, 5_000, 60), Mean(0.1, 0.001, 5_000, 60)
    for few in (Mean(0.1, 0.001, LEAST_SAMPLES - 1, 60), Mean(0.1, 0.001, 5_000, 9)):
        found = difference(good, few)
        assert found is not None
        assert found.shown == "too early"
    shown = difference(good, bad)
    assert shown is not None
    assert (shown.shown, shown.low < 0.8 < shown.high) == ("higher", True)
    assert difference(None, bad) is None


# -- the report -------------------------------------------------------------------------------------------------------


def counts(variant: str, hits: int, misses: int, errors: int, ms: float) -> dict[str, int]:
    """Returns the counts of equal requests in each of 20 groups."""
    found: Counter[str] = Counter()
    bucket = BUCKETS[int(np.searchsorted(BOUNDS_MS, ms))]
    for group in range(20):
        place = f"{variant}:group:{group}"
        answers = hits + misses
        found.update({f"{place}:hit": hits, f"{place}:miss": misses, f"{place}:error": errors})
        found.update({f"{place}:answer": answers, f"{place}:log": round(1000 * math.log(ms)) * answers})
        found.update({f"{variant}:latency:{bucket}": answers, f"{variant}:queries:hit": hits})
        found.update({f"{variant}:queries:miss": misses, f"{variant}:queries:error": errors})
    return found


EXPERIMENT = Experiment(
    "trial",
    (VariantSpec("control", 5_000), VariantSpec("lower", 5_000, {"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.88})),
    (Segment(5_000, 0), Segment(10_000, 1)),
    started_ms=1_000,
    ends_ms=9_000,
)


def reported(figures: dict[str, int], quality: QualityState | None = None, now_ms: int = 2_000) -> Any:
    return report(EXPERIMENT, figures, quality or QualityState(), now_ms)


def test_the_report_says_in_plain_words_what_is_better() -> None:
    figures = {**counts("control", 100, 300, 4, 50), **counts("lower", 200, 200, 4, 50)}
    shown = reported(figures)
    (comparison,) = shown["comparisons"]
    assert (comparison["variant"], comparison["control"], comparison["verdict"]) == ("lower", "control", "better")
    assert comparison["summary"].startswith("lower is better: hit rate +25.0 points (+2")
    assert "No difference shown in latency, errors, wrong cached answers, bad feedback." in comparison["summary"]
    assert comparison["summary"].endswith(" Too few samples yet: wrong cached answers, bad feedback.")
    hit_rate = comparison["measures"]["hit_rate"]
    assert hit_rate["difference"] == 0.25
    assert 0 < hit_rate["low"] < 0.25 < hit_rate["high"]
    lower = shown["variants"][1]
    assert (lower["requests"], lower["hit_rate"]["estimate"], lower["hit_rate"]["samples"]) == (8_080, 0.5, 8_000)
    assert lower["latency_ms"]["typical"]["estimate"] == pytest.approx(50, rel=0.01)
    assert lower["latency_ms"]["p50"] == pytest.approx(50, rel=0.25)
    assert (lower["share"], lower["settings"]) == (50, {"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.88})


def test_unequal_shares_are_said_to_change_hit_rates_unless_answers_are_shared() -> None:
    control, lower = EXPERIMENT.variants
    uneven = replace(EXPERIMENT, variants=(control, replace(lower, share=1_000)))
    shared = replace(uneven, share_answers=True)
    said = [
        "shares differ" in report(one, {}, QualityState(), 2_000)["comparisons"][0]["summary"]
        for one in (EXPERIMENT, uneven, shared)
    ]
    assert said == [False, True, False]


def test_better_by_one_measure_and_worse_by_another_is_mixed() -> None:
    figures = {**counts("control", 100, 300, 0, 50), **counts("lower", 200, 200, 50, 50)}
    assert reported(figures)["comparisons"][0]["verdict"] == "mixed"


def test_a_slower_variant_is_worse_by_a_ratio() -> None:
    figures = {**counts("control", 100, 100, 0, 50), **counts("lower", 100, 100, 0, 100)}
    (comparison,) = reported(figures)["comparisons"]
    assert comparison["verdict"] == "worse"
    assert comparison["measures"]["latency"]["difference"] == pytest.approx(1, abs=0.01)
    assert comparison["summary"].startswith("lower is worse: latency +100.0% (+")


def test_without_requests_it_is_too_early_and_nothing_is_made_up() -> None:
    shown = reported({})
    assert shown["comparisons"][0]["verdict"] == "too early"
    assert shown["variants"][0]["hit_rate"] == {"estimate": None, "low": None, "high": None, "samples": 0}
    assert shown["variants"][0]["latency_ms"]["p50"] is None
    assert (shown["state"], reported({}, now_ms=9_000)["state"]) == ("running", "ended")


def test_counts_of_a_later_release_are_left_out() -> None:
    figures = {**counts("control", 1, 1, 0, 5), "control:a:b:c:d": 4, "alone": 1, "control:group:0:later": 2}
    assert figures_of(figures)["control"].totals["queries"].total() == 40
    assert reported(figures)["variants"][0]["requests"] == 40


def test_the_false_hit_rate_of_a_variant_is_the_quality_keepers() -> None:
    quality = QualityState(
        by_variant={"trial/lower": FalseHitRate(0.1, 0.05, 0.2, 80)}, variant_levels={"trial/lower": (2, 5)}
    )
    control, lower = reported({}, quality)["variants"]
    assert (control["false_hits"], control["level"]) == (None, 0)
    assert (lower["false_hits"]["estimate"], lower["level"]) == (0.1, 2)
