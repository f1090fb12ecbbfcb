"""Simulates sampled labels with a known truth: does the interval cover it, how soon does the fleet tighten, and who?

    python -m scripts.simulate_quality [--seeds 200]

The comparator's errors, where it has some, were measured on 300 pairs of each kind, so they are not exactly known. It
gives no verdict on some of the right answers and on some of the wrong ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
import typer

from api.ports.answer_quality import (
    Confusion,
    Evidence,
    FalseHitRate,
    Label,
    PolicyName,
    PooledLabel,
    QualityState,
    Verdict,
    Versions,
)
from api.quality.assessment import LENT, MISSES, assess, next_levels
from api.quality.calibration import Channel, Model, channel_of
from api.quality.comparator import MEASURED_WITH_MODEL, UNSEEN
from api.quality.estimate import (
    alarm,
    by_equal_questions,
    doubtful,
    doubts_since,
    hits_since,
    overall,
    samples,
    suspected,
)
from api.quality.policies import Published, QualitySettings, sampling_rate, spare_rate

DAY_MS: Final = 24 * 3600 * 1000
CALLED_SAME, CALLED_DIFFERENT = 0.02, 0.05
UNSURE_RIGHT, UNSURE_WRONG = 0.4, 0.2
"""Shares of the pairs without a verdict."""
PAIRS: Final = 300
TARGET: Final = 0.02
FAULT: Final = 0.1
LONGEST: Final = 20_000
"""Hits after which a simulation of a fault ends."""
ROUND: Final = 20
"""Hits between two rounds of the keeper."""
VERSIONS: Final = Versions("e", "", "c")
MODEL: Final = Model((2.2, 2.0, 0.0, 0.0, 0.0, 0.0), ())
"""What the fleet knows about candidates: a risk of 14 % at a cosine of .75, and of 3 % at .92."""

Rate = Callable[[float], float]
"""The true error at a time of the day, from 0 to 1."""


def steady(error: float) -> Rate:
    """Returns an error that does not change."""
    return lambda _: error


def drifting(at: float) -> float:
    """Returns an error that grows from 1 to 10 % during the day."""
    return 0.01 + 0.09 * at


def shadow(*, wrong: bool, chance: float, at_ms: int = 0, kind: str = "semantic", tenant: str = "t") -> PooledLabel:
    """Returns a label of a shadow call."""
    verdict = Verdict.DIFFERENT if wrong else Verdict.SAME
    label = Label(Evidence(0.95), verdict, "shadow", True, kind, PolicyName.GUARDED, VERSIONS, chance, at_ms)
    return PooledLabel("s", tenant, label)


def voted_bad(at_ms: int) -> PooledLabel:
    """Returns the label of a bad vote on an answer from the cache."""
    made = shadow(wrong=True, chance=1.0, at_ms=at_ms)
    return replace(made, label=replace(made.label, source="feedback"))


@dataclass(frozen=True)
class Estimated:
    """The true share of wrong hits, and what was estimated from a sample."""

    truth: float
    rate: FalseHitRate

    @property
    def covered(self) -> bool:
        """Whether the interval covers the truth."""
        return self.rate.low <= self.truth <= self.rate.high

    @property
    def width(self) -> float:
        """The width of the interval."""
        return self.rate.high - self.rate.low


def estimated(rate: Rate, seed: int, hits: int, chance: float, *, noise: bool, unsure: bool = False) -> Estimated:
    """Simulates a day of hits of which a share is labeled. Newer hits count more, as in the estimate.

    `unsure`: some of the labels have no verdict.
    """
    random = np.random.default_rng(seed)
    called_same, called_different = (CALLED_SAME, CALLED_DIFFERENT) if noise else (0.0, 0.0)
    errors = (int(random.binomial(PAIRS, called_same)), int(random.binomial(PAIRS, called_different)))
    none = int(random.binomial(PAIRS, UNSURE_WRONG)) if unsure else 0
    confusion = Confusion(PAIRS, errors[0], PAIRS, errors[1], none) if noise else Confusion()
    if unsure:
        confusion = Confusion(PAIRS - none, min(errors[0], PAIRS - none), PAIRS, errors[1], none)
    at = np.sort(random.random(hits))
    wrong = random.random(hits) < np.array([rate(one) for one in at])
    weight = 0.5 ** (1 - at)
    said = np.where(wrong, random.random(hits) >= called_same, random.random(hits) < called_different)
    picked = np.flatnonzero(random.random(hits) < chance)
    labels = [shadow(wrong=bool(said[one]), chance=chance, at_ms=round(DAY_MS * at[one])) for one in picked]
    if unsure:
        none_of = np.where(wrong, UNSURE_WRONG, UNSURE_RIGHT)
        labels = [_without_verdict(one, random.random() < none_of[at]) for one, at in zip(labels, picked, strict=True)]
    truth = float((wrong * weight).sum() / weight.sum())
    return Estimated(truth, overall(samples(labels, DAY_MS, unsure=True), confusion, {}))


FIELDS: Final = {
    "right": Channel(),
    "as on short answers": channel_of(MEASURED_WITH_MODEL.confusion),
    "as on blind pairs": channel_of(UNSEEN.confusion),
}
"""The comparator's errors on the answers of a deployment, which the service cannot know."""


def shown(rate: Rate, seed: int, hits: int, chance: float, errors: Channel) -> Estimated:
    """Simulates a day of hits, and returns what the service shows. Half of the hits are equal questions, all right."""
    random = np.random.default_rng(seed)
    at, exact = np.sort(random.random(hits)), random.random(hits) < 0.5
    wrong = (random.random(hits) < np.array([rate(one) for one in at])) & ~exact
    said = np.where(wrong, random.random(hits) >= errors.called_same, random.random(hits) < errors.called_different)
    labels = []
    for one in np.flatnonzero(random.random(hits) < chance):
        kind = "exact" if exact[one] else "semantic"
        made = shadow(wrong=bool(said[one]), chance=chance, at_ms=1 + round(DAY_MS * at[one]), kind=kind)
        labels.append(replace(made, label=replace(made.label, entry=str(one))))
    measured = MEASURED_WITH_MODEL.confusion
    settings = QualitySettings(PolicyName.GUARDED, 0.92, TARGET, VERSIONS, measured, shown=UNSEEN.confusion)
    weight = 0.5 ** (1 - at)
    truth = float((wrong * weight).sum() / weight.sum())
    return Estimated(truth, assess(labels, Counter(), Published(), settings, DAY_MS, {}).published.state.rate)


def _without_verdict(label: PooledLabel, is_unsure: bool) -> PooledLabel:
    return replace(label, label=replace(label.label, verdict=Verdict.UNSURE)) if is_unsure else label


@dataclass
class Watched:
    """A fleet that serves hits. `tightened`: after how many hits it did so, each time; `sampled`: hits labeled."""

    tightened: list[int]
    sampled: int = 0


@dataclass(frozen=True)
class Signs:
    """What shows a fault besides the labels of hits.

    `misses`: for each hit there is a labeled miss, and its candidate is as often wrong for the same reason. Without it
    the fault shows in hits only. `voted`: the share of the wrong hits that get a bad vote. `changed`: the fault begins
    with a change of the settings. `spare`: the fleet makes few shadow calls, so more hits are sampled.
    """

    misses: bool = False
    voted: float = 0.0
    changed: bool = False
    spare: bool = True


def watched(
    error: float, seed: int, chance: float, hits: int, *, noise: bool, signs: Signs = Signs(), until_first: bool = False
) -> Watched:
    """Serves hits with an error. While labels look like a fault, more hits are sampled.

    Each tightening forgets the labels before it. One hit takes a second.
    """
    random = np.random.default_rng(seed)
    channel = Channel(CALLED_SAME, CALLED_DIFFERENT) if noise else Channel()
    fault = error if error > TARGET else 0.0
    rates = spare_rate if signs.spare else sampling_rate

    def says_wrong(wrong: bool) -> bool:
        return bool(random.random() >= channel.called_same if wrong else random.random() < channel.called_different)

    found, of_hits, of_misses = Watched([]), list[PooledLabel](), list[Label]()
    is_suspected = at_first = signs.changed
    for hit in range(1, hits + 1):
        if signs.misses:
            evidence = Evidence(random.uniform(0.75, 0.92))
            risk = MODEL.estimate(evidence)
            is_wrong = random.random() < risk + (1 - risk) * fault
            verdict = Verdict.DIFFERENT if says_wrong(is_wrong) else Verdict.SAME
            of_misses.append(Label(evidence, verdict, "miss", False, "semantic", PolicyName.GUARDED, VERSIONS))
        rate = rates(chance, QualityState(suspected=is_suspected))
        is_wrong = bool(random.random() < error)
        is_sampled = random.random() < rate
        if is_sampled:
            found.sampled += 1
            of_hits.append(shadow(wrong=says_wrong(is_wrong), chance=rate, at_ms=1000 * hit))
        if is_wrong and random.random() < signs.voted:
            of_hits.append(voted_bad(1000 * hit))
        if is_sampled or hit % ROUND == 0:
            lent = LENT if signs.misses and doubtful(of_misses[-MISSES:], MODEL, channel, TARGET) else 0.0
            newest = of_hits[-500:]
            is_suspected = suspected(doubts_since(newest, 0), channel, TARGET, lent, at_first=at_first)
            if alarm(hits_since(newest, 0), channel, TARGET, lent):
                found.tightened.append(hit)
                of_hits, of_misses, at_first = [], [], False
                if until_first:
                    break
    return found


@dataclass(frozen=True)
class FirstTightened:
    """Who was tightened first, and after how many hits of all tenants. `fleet` is false if only `tenants` were."""

    hits: int
    fleet: bool
    tenants: frozenset[str] = frozenset()


def shared(faulty: int, seed: int, chance: float, *, noise: bool, tenants: int = 4) -> FirstTightened:
    """Serves hits of tenants in turn. Of the first `faulty` of them 10 % are wrong, and 0.5 % of the others'.

    The fault shows in hits only. Hits are sampled as in `watched`.
    """
    random = np.random.default_rng(seed)
    confusion = Confusion(PAIRS, round(CALLED_SAME * PAIRS), PAIRS, CALLED_DIFFERENT * PAIRS) if noise else Confusion()
    settings = QualitySettings(PolicyName.GUARDED, 0.92, TARGET, VERSIONS, confusion)
    channel = channel_of(confusion)
    labels, rate = list[PooledLabel](), chance
    for hit in range(1, LONGEST + 1):
        tenant = hit % tenants
        if random.random() >= rate:
            continue
        wrong = random.random() < (FAULT if tenant < faulty else 0.005)
        if noise:
            wrong = bool(random.random() >= CALLED_SAME if wrong else random.random() < CALLED_DIFFERENT)
        labels.append(shadow(wrong=wrong, chance=rate, at_ms=hit, tenant=str(tenant)))
        found = next_levels(labels, Published(), settings, hit, lambda _: None)
        if found.level or found.tenants:
            return FirstTightened(hit, found.level > 0, frozenset(found.tenants))
        is_suspected = suspected([one.label for one in labels], channel, TARGET)
        rate = sampling_rate(chance, QualityState(suspected=is_suspected))
    return FirstTightened(LONGEST, fleet=False)


def _tenants(seeds: int) -> None:
    print("\n| tenants with the fault | comparator | only they tightened | another one | the fleet | hits, median |")
    print("|---|---|---|---|---|---|")
    for faulty, noise in product((1, 4), (False, True)):
        runs = [shared(faulty, seed, 0.05, noise=noise) for seed in range(seeds)]
        theirs = {str(number) for number in range(faulty)}
        alone = sum(bool(one.tenants) and not one.fleet and one.tenants <= theirs for one in runs)
        others = sum(bool(one.tenants - theirs) for one in runs)
        fleet = sum(one.fleet for one in runs)
        hits = np.median([one.hits for one in runs])
        print(
            f"| {faulty} of 4 | {_comparator(noise=noise)} | {alone} | {others} | {fleet} | {hits:,.0f} |", flush=True
        )


def _coverage(seeds: int) -> None:
    print("| true error | hits | sampled | comparator | interval covers | mean width | smallest width |")
    print("|---|---|---|---|---|---|---|")
    rates: Sequence[tuple[str, Rate]] = (
        *((f"{error:.1%}", steady(error)) for error in (0.0, 0.005, 0.02, 0.05, 0.1)),
        ("1 to 10 %", drifting),
    )
    for name, rate in rates:
        for hits, chance in ((1000, 0.01), (5000, 0.01), (5000, 0.05), (5000, 0.1)):
            for noise in (False, True):
                found = [estimated(rate, seed, hits, chance, noise=noise) for seed in range(seeds)]
                widths = [one.width for one in found]
                share = sum(one.covered for one in found) / seeds
                print(
                    f"| {name} | {hits:,} | {chance:.0%} | {_comparator(noise=noise)} | {share:.1%} | "
                    f"{np.mean(widths):.3f} | {min(widths):.3f} |",
                    flush=True,
                )


def _fields(seeds: int) -> None:
    print("\n| error of similar questions | hits | sampled | comparator | interval covers | truth | shown, means |")
    print("|---|---|---|---|---|---|---|")
    rates = {"0.5 %": steady(0.005), "2 %": steady(0.02), "10 %": steady(0.1), "1 to 10 %": drifting}
    for (name, rate), (hits, chance) in product(rates.items(), ((2000, 0.05), (10_000, 0.2))):
        for what, errors in FIELDS.items():
            found = [shown(rate, seed, hits, chance, errors) for seed in range(seeds)]
            covered = sum(one.covered for one in found) / seeds
            means = [np.mean([getattr(one.rate, part) for one in found]) for part in ("estimate", "low", "high")]
            print(
                f"| {name} | {hits:,} | {chance:.0%} | {what} | {covered:.0%} | "
                f"{np.mean([one.truth for one in found]):.1%} | {means[0]:.1%} ({means[1]:.1%} to {means[2]:.1%}) |",
                flush=True,
            )


SIGNS: Final = {
    "hits and misses": Signs(misses=True),
    "hits only": Signs(),
    "hits only; 1 in 50 of the wrong ones is voted `bad`": Signs(voted=0.02),
    "hits only, after a change of the settings": Signs(changed=True),
    "hits only, of a fleet with many": Signs(spare=False),
}


def _tightening(seeds: int) -> None:
    print("\n| sampled | the fault shows in | comparator | median | 95 % |")
    print("|---|---|---|---|---|")
    for chance in (0.01, 0.02, 0.05, 0.2):
        for (shows, signs), noise in product(SIGNS.items(), (False, True)):
            runs = [
                watched(FAULT, seed, chance, LONGEST, noise=noise, signs=signs, until_first=True)
                for seed in range(seeds)
            ]
            found = [one.tightened[0] if one.tightened else LONGEST for one in runs]
            print(
                f"| {chance:.0%} | {shows} | {_comparator(noise=noise)} | {np.median(found):,.0f} | "
                f"{np.quantile(found, 0.95):,.0f} |",
                flush=True,
            )


def _false_alarms(seeds: int) -> None:
    print("\n| true error, 1 % sampled | comparator | tightened, times in 10,000 hits | sampled in fact |")
    print("|---|---|---|---|")
    for error, noise in product((0.005, 0.01), (False, True)):
        signs = Signs(misses=True)
        runs = [watched(error, seed, 0.01, 10_000, noise=noise, signs=signs) for seed in range(seeds)]
        times, sampled = np.mean([len(one.tightened) for one in runs]), np.mean([one.sampled for one in runs]) / 10_000
        print(f"| {error:.1%} | {_comparator(noise=noise)} | {times:.1f} | {sampled:.1%} |", flush=True)


def long_answers(error: float, equal: float, seed: int, labels: int = 500) -> int | None:
    """Labels hits whose answers are as long as the unseen pairs. Returns after how many labels the fleet tightens.

    `equal`: labels of equal questions for each one. The comparator's errors are assumed to be those on short answers.
    """
    random = np.random.default_rng(seed)
    errors = channel_of(UNSEEN.confusion)
    found = list[PooledLabel]()
    for number in range(1, labels + 1):
        if random.random() < equal:
            wrong = bool(random.random() < errors.called_different)
            one = shadow(wrong=wrong, chance=1.0, kind="exact")
            found.append(replace(one, label=replace(one.label, entry=str(number))))
        is_wrong = random.random() < error
        wrong = bool(random.random() >= errors.called_same if is_wrong else random.random() < errors.called_different)
        found.append(shadow(wrong=wrong, chance=1.0))
        if number % 10 == 0:
            channel = channel_of(by_equal_questions(found, MEASURED_WITH_MODEL.confusion).of({"semantic": 1.0}))
            if alarm(hits_since(found, -1), channel, TARGET):
                return number
    return None


def _long_answers(seeds: int) -> None:
    print("\n| true error | labels of equal questions for each of a similar one | tightened within 500 labels |")
    print("|---|---|---|")
    for error, equal in product((0.005, 0.1), (0.0, 0.3, 1.0)):
        times = sum(long_answers(error, equal, seed) is not None for seed in range(seeds))
        print(f"| {error:.1%} | {equal:g} | {times} of {seeds} |", flush=True)


def _comparator(*, noise: bool) -> str:
    return "2 / 5 % wrong" if noise else "right"


def main(seeds: int = 200, tightening_seeds: int = 40) -> None:
    """Prints the tables."""
    _coverage(seeds)
    _fields(seeds // 2)
    _tightening(tightening_seeds)
    _false_alarms(tightening_seeds // 4)
    _tenants(tightening_seeds)
    _long_answers(tightening_seeds)


if __name__ == "__main__":
    typer.run(main)
