"""Figures of a replay: hits, errors and recall with 95 % intervals, P-CHR AUC, and the setting to recommend. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from api.quality.replay import MISS, RIGHT, UNKNOWN, WRONG, Flags, Floats, Ints, Offer, Policy, Run, Truth

Z: Final = 1.959964
"""Standard deviations of a 95 % interval."""
RESAMPLES: Final = 1000


# -- Outcomes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each request. `right`: of hits `RIGHT`, `WRONG` or `UNKNOWN`.

    `could`: a right answer was there to be served; empty if unknown. `cluster`: requests that share a cached question
    and are therefore right or wrong together; empty if requests are independent.
    """

    hits: Flags
    right: Ints
    could: Flags
    cluster: Ints

    def part(self, mask: Flags) -> Outcomes:
        """Returns the outcomes of some of the requests."""
        could = self.could[mask] if len(self.could) else self.could
        cluster = self.cluster[mask] if len(self.cluster) else self.cluster
        return Outcomes(self.hits[mask], self.right[mask], could, cluster)


def outcomes_of_stream(run: Run, truth: Truth, could: Flags) -> Outcomes:
    """Returns the outcomes of a replay."""
    hits = run.served != MISS
    right = np.full(len(hits), UNKNOWN)
    for asked in np.flatnonzero(hits):
        known = truth(int(asked), int(run.served[asked]))
        right[asked] = UNKNOWN if known is None else int(known)
    return Outcomes(hits, right, could, np.where(hits, run.served, np.arange(len(hits))))


def outcomes_of_pairs(policy: Policy, offers: Sequence[Offer], same: Flags) -> Outcomes:
    """Returns the outcomes of pairs: one question is cached, the other is asked."""
    hits = np.array([bool(offer.near) and policy.decide(offer) is not None for offer in offers], bool)
    return Outcomes(hits, same.astype(np.int64), same, np.array([], np.int64))


# -- Figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a policy does at one threshold. Rates are None if nothing is known about them.

    `unknown`: hits of which nobody knows whether they are right. `error_per_hit`: wrong answers among the other hits.
    `error_per_request`: among all requests. `recall`: right hits among the requests that could have had one.
    """

    policy: str
    verifier: bool
    threshold: float
    requests: int
    hits: int
    exact: int
    wrong: int | None
    unknown: int
    hit_rate: Rate
    error_per_hit: Rate | None
    error_per_request: Rate | None
    recall: Rate | None


def figures(policy: Policy, found: Outcomes, exact: int, seed: int) -> Figures:
    """Returns the figures of a policy's outcomes."""
    known = found.hits & (found.right != UNKNOWN)
    wrong = found.hits & (found.right == WRONG)
    is_known = bool(known.any()) or bool(len(found.could))
    all_requests = np.ones(len(found.hits), bool)

    def rate(numerator: Flags, denominator: Flags) -> Rate | None:
        return _rate(numerator, denominator, found.cluster, seed)

    hit_rate = rate(found.hits, all_requests) or Rate(0.0, 0.0, 1.0)
    return Figures(
        policy.name,
        policy.verifier,
        policy.threshold,
        len(found.hits),
        int(found.hits.sum()),
        exact,
        int(wrong.sum()) if is_known else None,
        int((found.hits & (found.right == UNKNOWN)).sum()),
        hit_rate,
        rate(wrong, known),
        rate(wrong, all_requests) if is_known else None,
        rate(found.hits & (found.right == RIGHT) & found.could, found.could) if len(found.could) else None,
    )


def _rate(numerator: Flags, denominator: Flags, cluster: Ints, seed: int) -> Rate | None:
    """Returns a share of flags. Never narrower than Wilson's interval, also with few clusters or none wrong."""
    hits, total = int(numerator.sum()), int(denominator.sum())
    if total == 0:
        return None
    low, high = wilson(hits, total)
    if len(cluster):
        resampled = _resampled(numerator, denominator, cluster, seed)
        low, high = min(low, float(np.quantile(resampled, 0.025))), max(high, float(np.quantile(resampled, 0.975)))
    return Rate(hits / total, low, high)


def wilson(hits: float, total: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share."""
    share, spread = hits / total, Z * Z / total
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def upper_bound(hits: int, total: int, confidence: float = 0.95) -> float:
    """Returns the one-sided upper confidence bound of a share by Clopper and Pearson, 1 without observations.

    It is the share at which `hits` or fewer would be seen with a probability of only 1 - `confidence`.
    """
    if hits >= total:
        return 1.0
    numbers = np.arange(1, hits + 1)
    choose = np.concatenate([[0.0], np.cumsum(np.log((total - numbers + 1) / numbers))])
    low, high = hits / total, 1.0
    for _ in range(60):
        share = (low + high) / 2
        terms = choose + np.arange(hits + 1) * math.log(share) + np.arange(total, total - hits - 1, -1) * _log1m(share)
        largest = terms.max()
        log_tail = largest + math.log(np.exp(terms - largest).sum())
        low, high = (share, high) if log_tail > math.log(1 - confidence) else (low, share)
    return high


def _log1m(share: float) -> float:
    return math.log1p(-share) if share < 1 else -math.inf


def _resampled(numerator: Flags, denominator: Flags, cluster: Ints, seed: int) -> Floats:
    """Returns the share in resamples of whole clusters (bootstrap).

    Clusters of equal counts are drawn together, so the cost depends on how many different counts there are.
    """
    _, index = np.unique(cluster, return_inverse=True)
    counts = np.stack([np.bincount(index, weights=flags) for flags in (numerator, denominator)], axis=1)
    kinds, sizes = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(counts), sizes / len(counts), size=RESAMPLES)
    sums = drawn @ kinds
    shares: Floats = sums[:, 0] / np.maximum(sums[:, 1], 1.0)
    return shares[sums[:, 1] > 0] if (sums[:, 1] > 0).any() else np.zeros(1)


def p_chr_auc(scores: Floats, right: Ints, seed: int) -> Rate | None:
    """Returns the area under precision against cache hit ratio (P-CHR AUC, arXiv 2606.19719), with its interval.

    The curve has a point for each distinct score: with that score as the threshold, the share of requests served, and
    the share of these that are right. It ends at the highest hit ratio that the policy reaches, so the area grows with
    precision and with reach. The trapezoidal rule starts at the first point.
    """
    if (np.isfinite(scores) & (right == UNKNOWN)).any() or not np.isfinite(scores).any():
        return None
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ones, good = np.ones((1, len(order))), (right[order] == RIGHT).astype(float)
    area = float(_areas(ones, good, ends, float(len(scores)))[0])
    rng = np.random.default_rng(seed)
    share = np.append(np.full(len(order), 1 / len(scores)), 1 - len(order) / len(scores)).clip(0)
    drawn = np.concatenate(
        [
            _areas(rng.multinomial(len(scores), share / share.sum(), 50)[:, :-1], good, ends, len(scores))
            for _ in range(6)
        ]
    )
    return Rate(area, float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975)))


def _areas(weights: Any, good: Floats, ends: Ints, requests: float) -> Floats:
    """Returns the area for each row of weights of the requests, which are sorted by falling score."""
    hits = np.cumsum(weights, axis=1)[:, ends]
    precision = np.cumsum(weights * good, axis=1)[:, ends] / np.maximum(hits, 1)
    areas: Floats = np.trapezoid(precision, hits / requests, axis=1)
    return areas


@dataclass(frozen=True, slots=True)
class Row:
    """A policy at a threshold. `kinds`: hits and number of pairs by kind."""

    policy: Policy
    outcomes: Outcomes
    figures: Figures
    kinds: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of a file. `kind`: `pairs`, `intents` or `log`. `areas`: P-CHR AUC by policy, if it is known."""

    name: str
    kind: str
    questions: int
    seed: int
    embedder: str
    rows: Sequence[Row]
    areas: Mapping[str, Rate]

    def document(self) -> dict[str, Any]:
        """Returns the JSON document."""
        return {
            "file": self.name,
            "kind": self.kind,
            "questions": self.questions,
            "embedder": self.embedder,
            "seed": self.seed,
            "rows": [{**asdict(row.figures), "kinds": row.kinds} for row in self.rows],
            "p_chr_auc": {name: asdict(area) for name, area in self.areas.items()},
        }


# -- Recommendation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """A setting on the half that it was not chosen on. `bound`: the 95 % upper bound of the error per hit."""

    chosen: Figures
    checked: Figures
    bound: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The setting with the most hits among those that hold the error, or None, and all that were checked."""

    max_error_rate: float
    best: Checked | None
    checked: Sequence[Checked]


def recommend(
    settings: Sequence[tuple[Policy, Outcomes]], chosen_on: Flags, max_error_rate: float, seed: int
) -> Recommendation:
    """Returns the setting with the most hits whose error per hit holds the limit on data that did not choose it.

    One half orders the settings by their upper bound. The other half tests them in this order and stops at the first
    whose upper bound is over the limit, so all tests together are wrong with a probability of at most 5 %.
    """
    ordered = sorted(
        ((error_bound(found.part(chosen_on), seed), place) for place, (_, found) in enumerate(settings)),
    )
    tested: list[Checked] = []
    for _, place in ordered:
        policy, found = settings[place]
        other = found.part(~chosen_on)
        first, second = (figures(policy, one, 0, seed) for one in (found.part(chosen_on), other))
        tested.append(Checked(first, second, error_bound(other, seed)))
        if tested[-1].bound > max_error_rate:
            break
    holding = [one for one in tested if one.bound <= max_error_rate]
    return Recommendation(max_error_rate, max(holding, key=lambda one: one.checked.hits, default=None), tested)


def error_bound(found: Outcomes, seed: int) -> float:
    """Returns the one-sided 95 % upper bound of the error per hit."""
    known, wrong = found.hits & (found.right != UNKNOWN), found.hits & (found.right == WRONG)
    bound = upper_bound(int(wrong.sum()), int(known.sum())) if known.any() else 1.0
    if known.any() and len(found.cluster):
        bound = max(bound, float(np.quantile(_resampled(wrong, known, found.cluster, seed), 0.95)))
    return bound


def pareto(rows: Sequence[Figures]) -> list[Figures]:
    """Returns the rows that no other row beats in hits or errors without losing in the other, fewest hits first."""
    front: list[Figures] = []
    for row in sorted(rows, key=lambda one: (-one.hits, one.wrong or 0)):
        last = front[-1] if front else None
        if last is None or (row.wrong or 0) < (last.wrong or 0) or (row.hits, row.wrong) == (last.hits, last.wrong):
            front.append(row)
    return front[::-1]
