"""How often served answers are wrong: the estimate, and whether its interval covers the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from api.ports.answer_quality import Confusion, Verdict
from api.quality.estimate import bands, in_the_field, overall, parts, rate_of, samples
from scripts.simulate_quality import FIELDS, Rate, drifting, estimated, shadow, shown, steady


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


def test_the_deployments_own_labels_bound_the_comparators_error() -> None:
    measured = Confusion(200, 6, 200, 18)
    assert in_the_field([], measured) == measured
    right = [shadow(wrong=False, chance=0.1, kind="exact") for _ in range(200)]
    wrong = [shadow(wrong=number % 5 == 0, chance=0.1) for number in range(200)]
    found = in_the_field([*right, *wrong], measured)
    assert found.of({"exact": 1}).called_different == pytest.approx(200 * 0.015, abs=0.1)
    assert found.of({"semantic": 1}).called_different == 18, "equal questions say nothing about similar ones"
    assert found.of({"exact": 1, "semantic": 1}).called_different == pytest.approx(200 * 0.0525, abs=0.1)
    assert in_the_field(wrong, measured).of({"semantic": 1}).called_different == 18, "nothing says that these are right"
    near = [shadow(wrong=False, chance=0.1) for _ in range(200)]
    assert in_the_field(near, measured).of({"semantic": 1}).called_different == pytest.approx(200 * 0.015, abs=0.1)


def test_each_tier_is_corrected_for_its_own_errors() -> None:
    """Of 1,000 equal questions none is called different; of 1,000 similar ones 9 %, as many as the comparator errs."""
    measured = Confusion(200, 6, 200, 18)
    labels = [shadow(wrong=False, chance=0.1, kind="exact") for _ in range(1000)]
    labels += [shadow(wrong=number % 100 < 9, chance=0.1) for number in range(1000)]
    confusion = in_the_field(labels, measured)
    found = parts(samples(labels, 0), confusion, "kind")
    assert found["semantic"].estimate == pytest.approx(0.0, abs=0.003)
    assert found["semantic"].low == found["exact"].estimate == 0.0
    assert found["exact"].high < 0.01


def test_rare_samples_count_for_more() -> None:
    labels = [shadow(wrong=True, chance=0.01)] + [shadow(wrong=False, chance=0.1) for _ in range(90)]
    found = overall(samples(labels, 0), Confusion(), {})
    assert found.estimate == pytest.approx(100 / 1000)
    assert found.served == pytest.approx(1000)


def test_tiers_are_weighted_by_what_they_served() -> None:
    exact = [shadow(wrong=False, chance=0.1, kind="exact") for _ in range(100)]
    semantic = [shadow(wrong=number < 10, chance=0.1) for number in range(100)]
    found = samples([*exact, *semantic], 0)
    assert overall(found, Confusion(), {"exact": 900, "semantic": 100}).estimate == pytest.approx(0.01)
    assert overall(found, Confusion(), {"exact": 100, "semantic": 900}).estimate == pytest.approx(0.09)


def test_a_tier_without_labels_widens_the_interval_by_its_share() -> None:
    found = samples([shadow(wrong=False, chance=0.1) for _ in range(1000)], 0)
    assert overall(found, Confusion(), {"semantic": 800, "stale": 200}).high > 0.2


def test_feedback_misses_and_unsure_verdicts_are_no_sample_of_hits() -> None:
    one = shadow(wrong=True, chance=0.1)
    others = [
        replace(one, label=replace(one.label, source="feedback")),
        replace(one, label=replace(one.label, source="miss", served=False)),
        replace(one, label=replace(one.label, verdict=Verdict.UNSURE)),
    ]
    assert len(samples([one, *others], 0)) == 1


def test_parts_and_bands() -> None:
    labels = [shadow(wrong=tenant == "b", chance=0.1, tenant=tenant) for tenant in "abb"]
    found = samples(labels, 0)
    by_tenant = parts(found, Confusion(), "tenant")
    assert {tenant: rate.estimate for tenant, rate in by_tenant.items()} == {"a": 0.0, "b": 1.0}
    assert [(band.low_end, band.labels, band.wrong) for band in bands(found, Confusion()) if band.labels] == [
        (0.94, 3, 2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("hits", "chance"), [(1000, 0.01), (5000, 0.05), (5000, 0.1)])
@pytest.mark.parametrize("rate", [steady(0.02), steady(0.1), drifting], ids=["2 %", "10 %", "drift"])
def test_the_interval_covers_the_truth(rate: Rate, hits: int, chance: float, *, noise: bool) -> None:
    found = [estimated(rate, seed, hits, chance, noise=noise) for seed in range(100)]
    assert sum(one.covered for one in found) >= 95
    assert all(one.width > 0 for one in found)


def test_wrong_answers_that_get_a_verdict_more_often_are_not_counted_more_often() -> None:
    """Of 1,000 hits 100 are wrong. Half of the right ones get no verdict, and all of the wrong ones get one."""
    labels = [shadow(wrong=number < 100, chance=0.1) for number in range(1000)]
    unsure = [replace(one, label=replace(one.label, verdict=Verdict.UNSURE)) for one in labels[100:550]]
    found = samples([*labels[:100], *unsure, *labels[550:]], 0, unsure=True)
    measured = overall(found, Confusion(different=300, same=300), {})
    assert measured.estimate == pytest.approx(0.1)
    assert measured.low < 0.1 < measured.high < 0.13
    assert measured.samples == 550, "labels without a verdict are not evidence of either"
    assert overall(found, Confusion(), {}).estimate == pytest.approx(100 / 550), "nothing is known of the comparator"
    assert parts(found, Confusion(different=300, same=300), "kind")["semantic"].estimate == pytest.approx(0.1)


def test_wrong_answers_without_a_verdict_are_counted() -> None:
    """The comparator sees half of the wrong answers: 5 % of the labels call for 10 %."""
    labels = [shadow(wrong=number < 50, chance=0.1) for number in range(1000)]
    unsure = [replace(one, label=replace(one.label, verdict=Verdict.UNSURE)) for one in labels[:50]]
    found = overall(
        samples([*labels, *unsure], 0, unsure=True), Confusion(different=150, same=300, unsure_different=150), {}
    )
    assert found.estimate == pytest.approx(100 / 1050, rel=0.01)
    assert found.served == pytest.approx(10_500)


@pytest.mark.slow
@pytest.mark.once(reason="a simulation with a seed")
@pytest.mark.parametrize("rate", [steady(0.02), steady(0.1), drifting], ids=["2 %", "10 %", "drift"])
def test_the_interval_covers_the_truth_where_labels_have_no_verdict(rate: Rate) -> None:
    found = [estimated(rate, seed, 5000, 0.1, noise=True, unsure=True) for seed in range(200)]
    assert sum(one.covered for one in found) >= 190


@pytest.mark.slow
@pytest.mark.parametrize("answers", FIELDS)
@pytest.mark.parametrize("rate", [steady(0.1), drifting])
def test_the_shown_interval_covers_the_truth_on_easy_and_on_hard_answers(rate: Rate, answers: str) -> None:
    """Nobody knows how well the comparator judges the answers of a deployment."""
    found = [shown(rate, seed, 4000, 0.2, FIELDS[answers]) for seed in range(10)]
    assert sum(one.covered for one in found) >= 9


def test_wrong_answers_are_shown_where_the_comparator_is_right() -> None:
    found = shown(steady(0.1), 1, 10_000, 0.2, FIELDS["right"])
    assert found.rate.estimate == pytest.approx(found.truth, rel=0.4)
    assert found.rate.low < found.truth < found.rate.high
