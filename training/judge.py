"""Judges verifiers on held-out pairs: calibration, loss, AUC, and whether a new model is better than the one in use.

Pure functions of logits and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
"""The share of the resamples in which the new model must have the lower loss."""
SHRINKAGE: Final = 1e-3
MIN_HELD_OUT: Final = 40
"""Fewer held-out pairs cannot tell two models apart."""


class Calibration(NamedTuple):
    """Maps a logit to a probability: sigmoid(a * logit + b)."""

    a: float
    b: float

    def probabilities(self, logits: Array) -> Array:
        """Returns the probability that one answer serves both questions."""
        return _sigmoid(self.a * logits + self.b)


def calibrate(logits: Array, same: Array) -> Calibration:
    """Fits the calibration to labeled pairs by logistic regression, slightly shrunk to a = 1.

    Newton's method with halved steps: full steps can go back and forth, if a model is sure of what is wrong.
    """
    values = np.column_stack([logits, np.ones(len(logits))]).astype(float)
    start = np.array([1.0, 0.0])
    fitted = start.copy()
    penalty = SHRINKAGE * len(logits) * np.diag([1.0, 0.0]) + 1e-9 * np.eye(2)

    def loss(at: Array) -> float:
        scores, away = values @ at, at - start
        return float((np.logaddexp(0, scores) - same * scores).sum() + away @ penalty @ away / 2)

    for _ in range(50):
        probability = _sigmoid(values @ fitted)
        gradient = values.T @ (probability - same) + penalty @ (fitted - start)
        curvature = (values * (probability * (1 - probability))[:, None]).T @ values + penalty
        step = np.clip(np.linalg.solve(curvature, gradient), -2, 2)
        before = loss(fitted)
        while np.abs(step).max() >= 1e-9 and loss(fitted - step) > before:
            step = step / 2
        fitted -= step
        if np.abs(step).max() < 1e-9:
            break
    return Calibration(float(fitted[0]), float(fitted[1]))


def losses(probabilities: Array, same: Array) -> Array:
    """Returns the log-loss of each pair."""
    right = np.where(same, probabilities, 1 - probabilities)
    found: Array = -np.log(np.clip(right, 1e-6, 1))
    return found


def auc(scores: Array, same: Array) -> float:
    """Returns the probability that a positive pair scores above a negative one; ties count half."""
    values, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del values
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(np.sum(same))
    negatives = len(same) - positives
    if not positives or not negatives:
        return float("nan")
    return float((ranks[np.asarray(same, bool)].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(probabilities: Array, same: Array, bins: int = 10) -> float:
    """Returns the mean distance between predicted and true share over bins of equal size."""
    order = np.array_split(np.argsort(probabilities), bins)
    gaps = [len(part) * abs(probabilities[part].mean() - same[part].mean()) for part in order if len(part)]
    return float(sum(gaps) / len(same))


class ModelFigures(NamedTuple):
    """How good one model is on the held-out pairs."""

    loss: float
    auc: float
    calibration_error: float


class ModelComparison(NamedTuple):
    """The new model against the one in use, on the same held-out pairs. A `gain` above 0 favors the new one."""

    pairs: int
    clusters: int
    new: ModelFigures
    used: ModelFigures
    gain: float
    low: float
    high: float
    """The 95 % interval of the gain in log-loss."""
    better: bool

    @property
    def verdict(self) -> str:
        """Says in one sentence what the comparison found."""
        if self.pairs < MIN_HELD_OUT:
            return f"cannot tell: only {self.pairs} held-out pairs, at least {MIN_HELD_OUT} are needed"
        change = f"log-loss {self.used.loss:.4f} to {self.new.loss:.4f}"
        interval = f"95 % interval of the gain {self.low:.4f} to {self.high:.4f}"
        return f"{'better' if self.better else 'not better'}: {change}, {interval}, on {self.pairs:,} held-out pairs"

    def described(self) -> dict[str, Any]:
        """Returns the comparison for model.json and --json."""
        plain = {
            "pairs": self.pairs,
            "clusters": self.clusters,
            "new": self.new._asdict(),
            "used": self.used._asdict(),
            "gain": self.gain,
            "interval": [self.low, self.high],
        }
        return {**rounded(plain), "better": self.better}


def rounded(value: Any) -> Any:
    """Rounds every number in dictionaries and lists to five places, for files and --json."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def figures(probabilities: Array, same: Array) -> ModelFigures:
    """Returns the figures of calibrated probabilities."""
    return ModelFigures(
        float(losses(probabilities, same).mean()), auc(probabilities, same), calibration_error(probabilities, same)
    )


def compare(new: Array, used: Array, same: Array, clusters: Sequence[int], seed: int = 0) -> ModelComparison:
    """Compares the probabilities of two models pair by pair, and resamples whole clusters of questions.

    Pairs that share questions are not independent: resampling pairs would make the interval too narrow.
    """
    difference = losses(used, same) - losses(new, same)
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(numbers, weights=difference)
    counts = np.bincount(numbers)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    gains = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(gains, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    better = len(same) >= MIN_HELD_OUT and float((gains > 0).mean()) >= CONFIDENCE
    return ModelComparison(
        pairs=len(same),
        clusters=len(sums),
        new=figures(new, same),
        used=figures(used, same),
        gain=float(difference.mean()),
        low=float(low),
        high=float(high),
        better=better,
    )


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))  # cannot overflow
