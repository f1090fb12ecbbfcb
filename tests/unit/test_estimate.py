"""How often served answers are wrong: the estimate, and whether its interval covers the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from api.ports.quality import Confusion, Evidence, Label, PolicyName, PooledLabel, Verdict, Versions
from api.quality.estimate import bands, overall, parts, rate_of, samples

HOUR_MS = 3600 * 1000


def shadow(
    *, wrong: bool, chance: float = 0.1, kind: str = "semantic", tenant: str = "t", at_ms: int = 0
) -> PooledLabel:
    verdict = Verdict.DIFFERENT if wrong else Verdict.SAME
    versions = Versions("e", "", "c")
    label = Label(Evidence(0.95), verdict, "shadow", True, kind, PolicyName.GUARDED, versions, chance, at_ms)
    return PooledLabel("s", tenant, label)


def test_without_labels_nothing_is_known() -> None:
    found = overall([], Confusion(), {})
    assert (found.low, found.high, found.samples) == (0.0, 1.0, 0)


def test_an_interval_without_a_wrong_label_is_as_wide_as_its_number_allows() -> None:
    for number, widest in ((1, 0.975), (10, 0.31), (100, 0.037)):
        found = rate_of(np.zeros(number), np.ones(number), Confusion())
        assert (found.estimate, found.low) == (0.0, 0.0)
        assert found.high == pytest.approx(widest, rel=0.06)


def test_a_comparator_with_errors_cannot_prove_that_nothing_is_wrong() -> None:
    found = rate_of(np.zeros(50), np.ones(50), Confusion(100, 2, 100, 20))
    assert found.estimate == 0.0
    assert found.high > 0.05


def test_rare_samples_count_for_more() -> None:
    labels = [shadow(wrong=True, chance=0.01)] + [shadow(wrong=False, chance=0.1) for _ in range(90)]
    found = overall(samples(labels, 0), Confusion(), {})
    assert found.estimate == pytest.approx(100 / 1000)
    assert found.served == pytest.approx(1000)


def test_tiers_are_weighted_by_what_they_served() -> None:
    exact = [shadow(wrong=False, kind="exact") for _ in range(100)]
    semantic = [shadow(wrong=number < 10, kind="semantic") for number in range(100)]
    found = samples([*exact, *semantic], 0)
    assert overall(found, Confusion(), {"exact": 900, "semantic": 100}).estimate == pytest.approx(0.01)
    assert overall(found, Confusion(), {"exact": 100, "semantic": 900}).estimate == pytest.approx(0.09)


def test_a_tier_without_labels_widens_the_interval_by_its_share() -> None:
    found = samples([shadow(wrong=False) for _ in range(1000)], 0)
    assert overall(found, Confusion(), {"semantic": 800, "stale": 200}).high > 0.2


def test_feedback_misses_and_unsure_verdicts_are_no_sample_of_hits() -> None:
    one = shadow(wrong=True)
    others = [
        replace(one, label=replace(one.label, source="feedback")),
        replace(one, label=replace(one.label, source="miss", served=False)),
        replace(one, label=replace(one.label, verdict=Verdict.UNSURE)),
    ]
    assert len(samples([one, *others], 0)) == 1


def test_parts_and_bands() -> None:
    labels = [shadow(wrong=False, tenant="a"), shadow(wrong=True, tenant="b"), shadow(wrong=True, tenant="b")]
    found = samples(labels, 0)
    by_tenant = parts(found, Confusion(), "tenant")
    assert {tenant: rate.estimate for tenant, rate in by_tenant.items()} == {"a": 0.0, "b": 1.0}
    assert [(band.low_end, band.labels, band.wrong) for band in bands(found, Confusion()) if band.labels] == [
        (0.94, 3, 2)
    ]


def covered(rate: Callable[[float], float], seed: int, hits: int, chance: float, *, noise: bool) -> bool:
    """Whether the interval covers the true share of wrong hits, over a day of hits; newer ones count more.

    The comparator's errors were measured on 300 pairs of each kind, so they are not exactly known.
    """
    random = np.random.default_rng(seed)
    called_same, called_different = (0.02, 0.05) if noise else (0.0, 0.0)
    known = Confusion(300, int(random.binomial(300, called_same)), 300, int(random.binomial(300, called_different)))
    at = np.sort(random.random(hits))
    wrong = random.random(hits) < np.array([rate(one) for one in at])
    weight = 0.5 ** (1 - at)
    truth = float((wrong * weight).sum() / weight.sum())
    said = np.where(wrong, random.random(hits) >= called_same, random.random(hits) < called_different)
    picked = np.flatnonzero(random.random(hits) < chance)
    labels = [shadow(wrong=bool(said[one]), chance=chance, at_ms=round(24 * HOUR_MS * at[one])) for one in picked]
    found = overall(samples(labels, 24 * HOUR_MS), known if noise else Confusion(), {})
    assert found.high > found.low
    return found.low <= truth <= found.high


def drifting(at: float) -> float:
    return 0.01 + 0.09 * at


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("hits", "chance"), [(1000, 0.01), (5000, 0.05), (5000, 0.1)])
@pytest.mark.parametrize("rate", [lambda _: 0.02, lambda _: 0.1, drifting], ids=["2 %", "10 %", "drift"])
def test_the_interval_covers_the_truth(
    rate: Callable[[float], float], hits: int, chance: float, *, noise: bool
) -> None:
    assert sum(covered(rate, seed, hits, chance, noise=noise) for seed in range(100)) >= 95
