"""How models are judged: calibration, AUC, and the comparison that decides which one is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.judge import auc, calibrate, calibration_error, compare

RANDOM = np.random.default_rng(7)


def labelled(count: int, strength: float, seed: int = 1) -> tuple[Any, Any]:
    """Logits that tell the labels apart by `strength`, and the labels."""
    random = np.random.default_rng(seed)
    same = (random.random(count) < 0.4).astype(float)
    return (2 * same - 1) * strength + random.normal(size=count), same


def test_calibration_finds_the_line_that_made_the_labels() -> None:
    logits = RANDOM.normal(0, 3, 20_000)
    same = (RANDOM.random(20_000) < 1 / (1 + np.exp(-(0.7 * logits - 1.1)))).astype(float)
    found = calibrate(logits, same)
    assert found.a == pytest.approx(0.7, abs=0.03)
    assert found.b == pytest.approx(-1.1, abs=0.06)
    assert calibration_error(found.probabilities(logits), same) < 0.015


def test_calibration_of_perfectly_separated_labels_is_finite() -> None:
    found = calibrate(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(found).all()
    assert found.probabilities(np.array([3.0]))[0] > 0.9


@pytest.mark.parametrize("share", [0.5, 0.86, 0.95])
def test_calibration_does_not_harm_a_model_that_is_sure_of_what_is_wrong(share: float) -> None:
    random = np.random.default_rng(0)
    same = (random.random(2000) < share).astype(float)
    logits = random.normal(0, 3, 2000) + same
    found = calibrate(logits, same)
    assert found.probabilities(logits).mean() == pytest.approx(same.mean(), abs=0.001)
    assert calibration_error(found.probabilities(logits), same) < 0.03


def test_auc_counts_pairs_in_order_and_ties_half() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert auc(np.array([1.0, 1.0]), np.array([0, 1])) == 0.5
    assert np.isnan(auc(np.array([1.0]), np.array([1])))


def judged(new: float, used: float, count: int = 800, seed: int = 1) -> Any:
    logits, same = labelled(count, new, seed)
    others, _ = labelled(count, used, seed)
    clusters = np.arange(count) // 4
    probabilities = [calibrate(one, same).probabilities(one) for one in (logits, others)]
    return compare(probabilities[0], probabilities[1], same, clusters.tolist())


def test_a_better_model_is_taken() -> None:
    found = judged(new=1.2, used=0.6)
    assert found.better
    assert 0 < found.low < found.gain < found.high
    assert found.new.auc > found.used.auc
    assert found.verdict.startswith("better: log-loss")


def test_a_worse_and_an_equal_model_are_refused() -> None:
    worse = judged(new=0.6, used=1.2)
    assert not worse.better
    assert worse.verdict.startswith("not better: log-loss")
    assert not judged(new=0.9, used=0.9).better


@pytest.mark.slow
def test_a_gain_within_chance_is_refused() -> None:
    """The same strength and other noise: a coin decides which one is ahead."""
    taken = 0
    for seed in range(40):
        new, same = labelled(300, 0.8, seed)
        used = (2 * same - 1) * 0.8 + np.random.default_rng(1000 + seed).normal(size=300)
        probabilities = [calibrate(one, same).probabilities(one) for one in (new, used)]
        taken += compare(probabilities[0], probabilities[1], same, list(range(300))).better
    assert taken <= 6  # 2 of 40 are expected at 95 %


def test_few_pairs_cannot_decide() -> None:
    found = judged(new=3.0, used=0.0, count=30)
    assert not found.better
    assert found.verdict == "cannot tell: only 30 held-out pairs, at least 40 are needed"


def test_one_cluster_repeated_is_not_much_evidence() -> None:
    """A gain that comes from one cluster of many pairs disappears when that cluster is not drawn."""
    same = np.ones(400)
    used = np.full(400, 0.8)
    new = np.where(np.arange(400) < 100, 0.99, 0.795)
    in_one = [0] * 100 + list(range(1, 301))
    assert compare(new, used, same, list(range(400))).better
    assert not compare(new, used, same, in_one).better
