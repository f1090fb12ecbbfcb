"""Estimates how often served answers are wrong, from labels of a sample of them. Pure.

Each label is weighted by how many served answers it stands for, and parts (tier and policy) by how much they served.
The comparator's errors are taken out, and how well these are known widens the interval. The interval is that of Clopper
and Pearson for the effective number of labels: it is never of zero width, and 0 to 1 without labels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from api.ports.answer_quality import Confusion, FalseHitRate, PolicyName, PooledLabel, SimilarityBand, Verdict

K = TypeVar("K", bound=Hashable)
Array = NDArray[np.float64]

HALF_LIFE_MS: Final = 24 * 3600 * 1000
"""The estimate follows a change: after this time a label counts half."""
OLDEST_MS: Final = 365 * HALF_LIFE_MS
"""Older labels are left out: their weights are too small to calculate with."""
DRAWS: Final = 4_000
OUTSIDE: Final = 0.025
"""The share of the draws on each side of the interval."""
BANDS: Final = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0)
TIERS: Final = ("semantic", "exact", "stale")
"""The tiers that serve answers."""
RUN: Final = 50
"""Labels between two looks at the rate of different ones."""
TENANTS: Final = 100
"""Tenants that get a separate estimate: those with the most labels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A label of a served answer. `weight`: how many served answers it stands for, less with age."""

    kind: str
    policy: PolicyName
    tenant: str
    similarity: float
    wrong: bool
    weight: float


def samples(labels: Iterable[PooledLabel], now_ms: int, *, served: bool = True) -> list[Sample]:
    """Returns the labels that the estimate counts: those of shadow calls.

    Feedback is not a random sample. With `served=False` returns all labels, those of misses too, for the bands.
    """
    found = []
    for pooled in labels:
        label = pooled.label
        age_ms = max(0, now_ms - label.at_ms)
        if label.verdict is Verdict.UNSURE or label.source == "feedback" or (served and not label.served):
            continue
        if age_ms > OLDEST_MS:
            continue
        weight = 0.5 ** (age_ms / HALF_LIFE_MS) / max(label.probability, 1e-4)
        wrong = label.verdict is Verdict.DIFFERENT
        found.append(Sample(label.kind, label.policy, pooled.tenant, label.evidence.similarity, wrong, weight))
    return found


def rate_of(wrong: Array, weight: Array, confusion: Confusion, served: float | None = None) -> FalseHitRate:
    """Returns the rate of wrong ones among what the labels stand for, with its interval.

    `served`: the number of answers; by default what the weights add up to.
    """
    total = float(weight.sum())
    if not total:
        return FalseHitRate(served=served or 0.0)
    seen = float(wrong @ weight) / total
    number = total**2 / float((weight**2).sum())
    low, high = _interval(seen * number, number, confusion)
    estimate = min(max(_corrected(seen, *_rates(confusion)), low), high)
    return FalseHitRate(estimate, low, high, len(wrong), total if served is None else served)


def in_the_field(labels: Sequence[PooledLabel], measured: Confusion) -> Confusion:
    """Returns the comparator's errors, in each tier as far as the deployment's own labels allow them.

    It was measured on pairs that are hard to compare. Among answers that a tier served, at least as many are called
    different as it calls so by mistake. So a long run of labels with few different ones bounds this error from above.
    Each tier has a separate bound: two answers to one question are easier to compare than those to two questions.
    """
    if not measured.same:
        return measured
    bounds = {tier: measured.same * min(_runs(labels, tier), default=1.0) for tier in TIERS}
    return replace(measured, in_tiers={tier: one for tier, one in bounds.items() if one < measured.called_different})


def _runs(labels: Sequence[PooledLabel], tier: str) -> Iterator[float]:
    """Yields an upper bound of the rate of different answers after each run of a tier's labels."""
    different = number = 0
    for one in labels:
        label = one.label
        if label.source == "shadow" and label.kind == tier and label.verdict is not Verdict.UNSURE:
            number += 1
            different += label.verdict is Verdict.DIFFERENT
            if number % RUN == 0:
                yield (different + 1.35 + 1.645 * math.sqrt(different + 1)) / number


def _rates(confusion: Confusion) -> tuple[float, float]:
    called_same = confusion.called_same / confusion.different if confusion.different else 0.0
    called_different = confusion.called_different / confusion.same if confusion.same else 0.0
    return called_same, called_different


def _corrected(seen: float, called_same: float, called_different: float) -> float:
    """Returns the true rate behind the one that the comparator has seen (Rogan and Gladen)."""
    return min(1.0, max(0.0, (seen - called_different) / max(1 - called_same - called_different, 0.05)))


def _interval(wrong: float, number: float, confusion: Confusion) -> tuple[float, float]:
    """Draws what the true rate may be, given the labels and the comparator's measured errors."""
    random = np.random.default_rng(0)
    same = _drawn(random, confusion.called_same, confusion.different)
    different = _drawn(random, confusion.called_different, confusion.same)
    clarity = np.maximum(1 - same - different, 0.05)
    least = random.beta(wrong, number - wrong + 1, DRAWS) if wrong > 1e-9 else np.zeros(DRAWS)
    most = random.beta(wrong + 1, number - wrong, DRAWS) if number - wrong > 1e-9 else np.ones(DRAWS)
    low = float(np.quantile((least - different) / clarity, OUTSIDE))
    high = float(np.quantile((most - different) / clarity, 1 - OUTSIDE))
    # A comparator that errs more often than it says "different" cannot prove that nothing is wrong.
    nothing_seen = 1 - OUTSIDE ** (1 / number)
    return min(max(low, 0.0), 1.0), min(max(high, nothing_seen), 1.0)


def _drawn(random: np.random.Generator, errors: float, pairs: int) -> Array:
    return np.zeros(DRAWS) if not pairs else random.beta(errors + 0.5, pairs - errors + 0.5, DRAWS)


def parts(
    found: Sequence[Sample], confusion: Confusion, by: str, served: Mapping[str, float] | None = None
) -> dict[str, FalseHitRate]:
    """Returns the rate of each part. `by`: `kind`, `policy` or `tenant`. `served`: answers of each part, if known."""
    grouped = _grouped((getattr(one, by), one) for one in found)
    largest = sorted(grouped, key=lambda name: -len(grouped[name]))[:TENANTS]
    return {str(name): _rate(grouped[name], confusion, (served or {}).get(str(name))) for name in sorted(largest)}


def _grouped(pairs: Iterable[tuple[K, Sample]]) -> dict[K, list[Sample]]:
    grouped: dict[K, list[Sample]] = defaultdict(list)
    for key, one in pairs:
        grouped[key].append(one)
    return grouped


def _rate(found: Sequence[Sample], confusion: Confusion, served: float | None = None) -> FalseHitRate:
    return _weighted([(one, one.weight) for one in found], confusion, served)


def _weighted(found: Sequence[tuple[Sample, float]], confusion: Confusion, served: float | None = None) -> FalseHitRate:
    """Returns the rate of samples with these weights. The comparator's errors are those of their tiers."""
    shares: dict[str, float] = defaultdict(float)
    for one, weight in found:
        shares[one.kind] += weight
    wrong, weights = np.array([float(one.wrong) for one, _ in found]), np.array([weight for _, weight in found])
    return rate_of(wrong, weights, confusion.of(shares), served)


def overall(found: Sequence[Sample], confusion: Confusion, served: Mapping[str, float]) -> FalseHitRate:
    """Returns the rate of everything served. `served`: answers of each tier, as counted; empty if unknown.

    Parts are weighted by these counts. A part without labels widens the interval by its share.
    """
    grouped = _grouped((one.kind, one) for one in found)
    total = sum(served.values())
    if not total:
        return _rate(found, confusion)
    covered = sum(count for kind, count in served.items() if kind in grouped)
    known = [
        (one, one.weight * served.get(kind, 0.0) / sum(of.weight for of in group))
        for kind, group in grouped.items()
        for one in group
    ]
    rate = _weighted(known, confusion, total)
    share = covered / total
    return FalseHitRate(rate.estimate, rate.low * share, rate.high * share + (1 - share), rate.samples, total)


def bands(found: Sequence[Sample], confusion: Confusion) -> list[SimilarityBand]:
    """Returns the labels by the cosine of the candidate."""
    result = []
    for low, high in pairwise(BANDS):
        within = [one for one in found if low <= one.similarity < high or (high == 1.0 and one.similarity >= 1.0)]
        wrong = sum(one.wrong for one in within)
        result.append(SimilarityBand(low, high, len(within), wrong, _rate(within, confusion)))
    return result
