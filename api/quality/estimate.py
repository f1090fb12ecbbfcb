"""Estimates how often served answers are wrong, from labels of a sample of them, and tests for sudden faults. Pure.

Each label is weighted by how many served answers it stands for, and parts (tier and policy) by how much they served.
The comparator's errors are taken out. They depend on the answers of the deployment, so the interval covers all that
they may be (`Errors`). Labels without a verdict count
too: if wrong answers get a verdict more often than right ones, there are fewer of them than verdicts suggest. The
interval is that of Clopper and Pearson for the effective number of labels: it is never of zero width, and 0 to 1
without labels.

The tests watch labels one by one: each adds up how much more likely a label is at one error than at another one
(sequential likelihood ratios).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from api.ports.answer_quality import Confusion, FalseHitRate, Label, PolicyName, PooledLabel, SimilarityBand, Verdict
from api.quality.calibration import Channel, Model

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
BY_MEANING: Final = {"semantic": 1.0}
"""The tier whose errors the policies learn from and tighten for."""
EQUAL_NEWEST: Final = 500
"""Labels of equal questions that count, each cached answer once."""
EQUAL_PRIOR: Final = 20.0
"""Labels that the measured error counts for beside them."""
RUN: Final = 50
"""Labels between two looks at the rate of different ones."""
TENANTS: Final = 100
"""Tenants that get a separate estimate: those with the most labels."""

FAULT: Final = 5.0
"""A sudden fault is this many times the target."""
ALARM: Final = math.log(100)
"""The log of how much more likely the labels must be at a fault than at the target."""
SUSPICION: Final = 0.5
"""The same, from which more hits are sampled."""
DISMISSED: Final = math.log(2)
"""How much more likely the labels since then must be at the target, until the suspicion ends."""
LONGEST_SUSPICION: Final = 200
"""Labels, with or without a verdict, after which a suspicion ends in any case."""
VOTED_MS: Final = 10 * 60 * 1000
"""In this time, one bad vote of a tenant counts as a reason to label more hits."""
PLAIN_RISK: Final = 0.2
"""Only candidates that were right more often than this allows: others say little about a fault."""
CLEARED: Final = math.log(10)
"""How much more likely labels must be at the target, so that they speak against a fault."""
PROOF: Final = math.log(20)
"""The same for loosening: at half the target, against twice the target."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A label of a served answer. `weight`: how many served answers it stands for, less with age.

    `wrong`: the verdict; None if there is none.
    """

    kind: str
    policy: PolicyName
    tenant: str
    similarity: float
    wrong: bool | None
    weight: float
    variant: str = ""


def samples(labels: Iterable[PooledLabel], now_ms: int, *, served: bool = True, unsure: bool = False) -> list[Sample]:
    """Returns the labels that the estimate counts: those of shadow calls.

    Feedback is not a random sample. With `served=False` returns all labels, those of misses too, for the bands. With
    `unsure=True` returns labels without a verdict too; without them nothing is known of how often there is one.
    """
    found = []
    for pooled in labels:
        label = pooled.label
        age_ms = max(0, now_ms - label.at_ms)
        if label.source == "feedback" or (served and not label.served):
            continue
        if label.verdict is Verdict.UNSURE and not unsure:
            continue
        if age_ms > OLDEST_MS:
            continue
        weight = 0.5 ** (age_ms / HALF_LIFE_MS) / max(label.probability, 1e-4)
        wrong = None if label.verdict is Verdict.UNSURE else label.verdict is Verdict.DIFFERENT
        similarity = label.evidence.similarity
        found.append(Sample(label.kind, label.policy, pooled.tenant, similarity, wrong, weight, label.variant))
    return found


def rate_of(
    wrong: Array, weight: Array, assumed: Assumed, served: float | None = None, unsure: float = 0.0
) -> FalseHitRate:
    """Returns the rate of wrong ones among what the labels stand for, with its interval.

    `served`: the number of answers; by default what the weights add up to. `unsure`: the weight of the labels without a
    verdict.
    """
    total = float(weight.sum())
    if not total:
        return FalseHitRate(served=served or 0.0)
    seen = float(wrong @ weight) / total
    number = total**2 / float((weight**2).sum())
    judged = _Judged(number, number * unsure / total if unsure else 0.0)
    errors = assumed if isinstance(assumed, Errors) else Errors(assumed, assumed, assumed)
    low, high = _interval(seen * number, judged, errors.most)
    if errors.fewest != errors.most:
        other = _interval(seen * number, judged, errors.fewest)
        low, high = min(low, other[0]), max(high, other[1])
    estimate = _corrected(seen, *_rates(errors.likely)) * judged.share / _share_judged(errors.likely, judged)
    estimate = min(max(min(estimate, 1.0), low), high)
    return FalseHitRate(estimate, low, high, len(wrong), total + unsure if served is None else served)


@dataclass(frozen=True, slots=True)
class Errors:
    """What the comparator's errors may be. `most`: as on long answers, which are hard to compare.

    The fewer right answers it calls different, the more of those that it calls different are wrong. `likely`: for the
    estimate.
    """

    likely: Confusion
    fewest: Confusion
    most: Confusion

    def of(self, shares: Mapping[str, float]) -> Errors:
        """Returns the errors in labels of several tiers. `shares`: the weight of each."""
        return Errors(*(one.of(shares) for one in (self.likely, self.fewest, self.most)))


Assumed = Confusion | Errors


def likely_errors(measured: Confusion, watched: Confusion) -> Confusion:
    """Returns the errors for the estimate. `measured`: as on long answers. `watched`: those that the alarms assume.

    What the alarms assume follows the labels of equal questions, so it holds for the deployment. Those questions find
    their own answers, which are hardly ever wrong.
    """
    if not (measured.same and watched.same):
        return measured
    called_different = watched.of(BY_MEANING).called_different * measured.same / watched.same
    bounds = {tier: measured.of({tier: 1.0}).called_different for tier in ("semantic", "exact")}
    likely = {tier: min(called_different, bound) for tier, bound in bounds.items()}
    return replace(measured, in_tiers={**measured.in_tiers, **likely})


@dataclass(frozen=True, slots=True)
class _Judged:
    """The effective numbers of labels with a verdict, and without one."""

    number: float
    unsure: float

    @property
    def share(self) -> float:
        """The share of the labels that have a verdict."""
        return self.number / (self.number + self.unsure)


def _share_judged(confusion: Confusion, judged: _Judged) -> float:
    """Returns the share of wrong answers that get a verdict. Not measured: as many as of all."""
    if not confusion.different or not judged.unsure:
        return judged.share
    return confusion.different / (confusion.different + confusion.unsure_different)


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


def by_equal_questions(labels: Sequence[PooledLabel], known: Confusion) -> Confusion:
    """Returns the comparator's errors, with more right answers called different if labels of equal questions show it.

    The cached answer to an equal question is right, or out of date, which no level stops. So how often it is called
    different shows how often that happens without a fault of matching: with long answers far more often than measured.
    """
    if not known.same:
        return known
    verdicts = {
        (one.scope, one.label.entry): one.label.verdict is Verdict.DIFFERENT
        for one in labels
        if one.label.source == "shadow" and one.label.kind == "exact" and one.label.verdict is not Verdict.UNSURE
    }
    newest = list(verdicts.values())[-EQUAL_NEWEST:]
    usual = known.called_different / known.same
    rate = (sum(newest) + EQUAL_PRIOR * usual) / (len(newest) + EQUAL_PRIOR)
    if rate <= usual:
        return known
    raised = min(rate, *_runs(labels, "semantic"), 1.0)
    return replace(known, in_tiers={**known.in_tiers, "semantic": known.same * raised})


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


def _interval(wrong: float, judged: _Judged, confusion: Confusion) -> tuple[float, float]:
    """Draws what the true rate may be, given the labels and the comparator's measured errors."""
    random, number = np.random.default_rng(0), judged.number
    same = _drawn(random, confusion.called_same, confusion.different)
    different = _drawn(random, confusion.called_different, confusion.same)
    clarity = np.maximum(1 - same - different, 0.05)
    least = random.beta(wrong, number - wrong + 1, DRAWS) if wrong > 1e-9 else np.zeros(DRAWS)
    most = random.beta(wrong + 1, number - wrong, DRAWS) if number - wrong > 1e-9 else np.ones(DRAWS)
    fewest, most_of_all = _factors(random, judged, confusion)
    low = float(np.quantile(fewest * (least - different) / clarity, OUTSIDE))
    high = float(np.quantile(most_of_all * (most - different) / clarity, 1 - OUTSIDE))
    # A comparator that errs more often than it says "different" cannot prove that nothing is wrong.
    nothing_seen = 1 - OUTSIDE ** (1 / number)
    return min(max(low, 0.0), 1.0), min(max(high, nothing_seen), 1.0)


def _factors(random: np.random.Generator, judged: _Judged, confusion: Confusion) -> tuple[Array, Array]:
    """Draws how many wrong answers there are for each one among those with a verdict: the least, and the most."""
    if not confusion.different or not judged.unsure:
        return np.ones(DRAWS), np.ones(DRAWS)
    of_wrong = random.beta(confusion.different + 0.5, confusion.unsure_different + 0.5, DRAWS)
    least = random.beta(judged.number, judged.unsure + 1, DRAWS)
    most = random.beta(judged.number + 1, judged.unsure, DRAWS)
    return least / of_wrong, most / of_wrong


def _drawn(random: np.random.Generator, errors: float, pairs: int) -> Array:
    return np.zeros(DRAWS) if not pairs else random.beta(errors + 0.5, pairs - errors + 0.5, DRAWS)


def parts(
    found: Sequence[Sample], assumed: Assumed, by: str, served: Mapping[str, float] | None = None
) -> dict[str, FalseHitRate]:
    """Returns the rate of each part. `by`: `kind`, `policy`, `tenant` or `variant`.

    `served`: answers of each part, if known.
    """
    grouped = _grouped((getattr(one, by), one) for one in found)
    largest = sorted(grouped, key=lambda name: -len(grouped[name]))[:TENANTS]
    return {str(name): _rate(grouped[name], assumed, (served or {}).get(str(name))) for name in sorted(largest)}


def _grouped(pairs: Iterable[tuple[K, Sample]]) -> dict[K, list[Sample]]:
    grouped: dict[K, list[Sample]] = defaultdict(list)
    for key, one in pairs:
        grouped[key].append(one)
    return grouped


def _rate(found: Sequence[Sample], assumed: Assumed, served: float | None = None) -> FalseHitRate:
    return _weighted([(one, one.weight) for one in found], assumed, served)


def _weighted(found: Sequence[tuple[Sample, float]], assumed: Assumed, served: float | None = None) -> FalseHitRate:
    """Returns the rate of samples with these weights. The comparator's errors are those of their tiers."""
    shares: dict[str, float] = defaultdict(float)
    judged = [(float(one.wrong), weight, one.kind) for one, weight in found if one.wrong is not None]
    for _, weight, kind in judged:
        shares[kind] += weight
    wrong, weights = np.array([one for one, _, _ in judged]), np.array([weight for _, weight, _ in judged])
    unsure = math.fsum(weight for one, weight in found if one.wrong is None)
    return rate_of(wrong, weights, assumed.of(shares), served, unsure)


def overall(found: Sequence[Sample], assumed: Assumed, served: Mapping[str, float]) -> FalseHitRate:
    """Returns the rate of everything served. `served`: answers of each tier, as counted; empty if unknown.

    Parts are weighted by these counts. A part without labels widens the interval by its share.
    """
    grouped = _grouped((one.kind, one) for one in found)
    total = sum(served.values())
    if not total:
        return _rate(found, assumed)
    judged = {one.kind for one in found if one.wrong is not None}
    covered = sum(count for kind, count in served.items() if kind in judged)
    known = [
        (one, one.weight * served.get(kind, 0.0) / sum(of.weight for of in group))
        for kind, group in grouped.items()
        for one in group
    ]
    rate = _weighted(known, assumed, total)
    share = covered / total
    return FalseHitRate(rate.estimate, rate.low * share, rate.high * share + (1 - share), rate.samples, total)


def bands(found: Sequence[Sample], assumed: Assumed) -> list[SimilarityBand]:
    """Returns the labels by the cosine of the candidate."""
    result = []
    for low, high in pairwise(BANDS):
        within = [one for one in found if low <= one.similarity < high or (high == 1.0 and one.similarity >= 1.0)]
        rate = _rate(within, assumed)
        result.append(SimilarityBand(low, high, rate.samples, sum(one.wrong is True for one in within), rate))
    return result


# -- tests for sudden faults -------------------------------------------------------------------------------------------


def hits_since(labels: Sequence[PooledLabel], since_ms: int) -> list[Label]:
    """Returns the labels of answers served since the last change, without equal questions: no level stops them."""
    return [
        one.label
        for one in labels
        if one.label.served
        and one.label.source == "shadow"
        and not one.label.of_same_question
        and one.label.at_ms > since_ms
    ]


def doubts_since(labels: Sequence[PooledLabel], since_ms: int) -> list[Label]:
    """Returns the labels of `hits_since`, and bad votes on such answers: of each tenant one in `VOTED_MS`.

    Votes are no random sample, so they can only cause more hits to be labeled.
    """
    found, voted = list[Label](), dict[str, int]()
    for pooled in labels:
        label = pooled.label
        if not label.served or label.of_same_question or label.at_ms <= since_ms:
            continue
        if label.source == "feedback":
            last_ms = voted.get(pooled.tenant, -VOTED_MS)
            if label.verdict is not Verdict.DIFFERENT or label.at_ms - last_ms < VOTED_MS:
                continue
            voted[pooled.tenant] = label.at_ms
        found.append(label)
    return found


def doubtful(misses: Sequence[Label], model: Model, channel: Channel, target: float) -> bool:
    """Returns whether the newest labels of misses raise an alarm. `model`: what was known before."""
    risks = [(one, risk) for one in misses if (risk := model.estimate(one.evidence)) <= PLAIN_RISK]
    errors = [(risk + (1 - risk) * _fault(target), risk) for _, risk in risks]
    return _now(_ratios([one for one, _ in risks], channel, errors)) >= ALARM


def alarm(labels: Iterable[Label], channel: Channel, target: float, lent: float = 0.0) -> bool:
    """Returns whether labels, oldest first, show a fault. `lent`: what others add to what the newest ones show."""
    sums = list(_sums(_faults(list(labels), channel, target)))
    return bool(sums) and (max(sums) >= ALARM or sums[-1] + lent >= ALARM)


def suspected(
    labels: Iterable[Label], channel: Channel, target: float, lent: float = 0.0, *, at_first: bool = False
) -> bool:
    """Returns whether the newest labels look like a fault, as after a single wrong one.

    The suspicion stays until labels speak against it. Otherwise a few right ones would end it, even during a fault.
    It ends too if many labels show neither. `at_first`: it begins with one, as after a change of the settings. Then
    more labels must speak against a fault.
    """
    total, is_suspected, number = 0.0, at_first, 0
    least = -CLEARED if at_first else -DISMISSED
    for ratio in _faults(list(labels), channel, target):
        total = total + ratio if is_suspected else max(0.0, total + ratio)
        number += is_suspected
        if total <= least or number >= LONGEST_SUSPICION:
            total, is_suspected, number, least = 0.0, False, 0, -DISMISSED
        is_suspected = is_suspected or total >= SUSPICION
    return is_suspected or total + lent >= SUSPICION


def without_fault(labels: Iterable[Label], channel: Channel, target: float) -> bool:
    """Returns whether all labels together speak against a fault."""
    return sum(_faults(list(labels), channel, target)) <= -CLEARED


def proven(labels: Iterable[Label], channel: Channel, target: float) -> bool:
    """Returns whether labels, oldest first, show that the error is at most half the target: a sequential test.

    What speaks against it counts up to `PROOF`. Otherwise the labels of a long fault would outweigh all later ones.
    """
    seen, total = list(labels), 0.0
    for ratio in _ratios(seen, channel, [(target / 2, min(2 * target, 0.5))] * len(seen)):
        total = max(-PROOF, total + ratio)
    return total >= PROOF


def _fault(target: float) -> float:
    return min(FAULT * target, 0.5)


def _faults(labels: Sequence[Label], channel: Channel, target: float) -> list[float]:
    return _ratios(labels, channel, [(_fault(target), target)] * len(labels))


def _sums(ratios: Iterable[float]) -> Iterable[float]:
    """Yields the cumulative sum after each ratio, never below 0."""
    total = 0.0
    for ratio in ratios:
        total = max(0.0, total + ratio)
        yield total


def _now(ratios: Iterable[float]) -> float:
    return next(iter(deque(_sums(ratios), maxlen=1)), 0.0)


def _ratios(labels: Sequence[Label], channel: Channel, errors: Sequence[tuple[float, float]]) -> list[float]:
    """Returns the log of how much more likely each label is at the first error than at the second one.

    The verdict on the answer itself counts, not the votes: the group may be right where the answer is wrong.
    """
    one, other = np.array(errors, dtype=np.float64).reshape(-1, 2).T
    first, second = (channel.called_different + channel.clarity * error for error in (one, other))
    of_wrong, of_right = np.log(first / second), np.log((1 - first) / (1 - second))
    wrong = np.array([label.verdict is Verdict.DIFFERENT for label in labels], dtype=bool)
    unsure = np.array([label.verdict is Verdict.UNSURE for label in labels], dtype=bool)
    return list(map(float, np.where(unsure, 0.0, np.where(wrong, of_wrong, of_right))))
