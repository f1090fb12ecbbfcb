"""Simulates sampled labels with a known truth: does the interval cover it, and how soon does the fleet tighten?

    python -m scripts.simulate_quality [--seeds 200]

The comparator's errors, where it has some, were measured on 300 pairs of each kind, so they are not exactly known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import typer

from api.ports.quality import (
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
from api.quality.assessment import alarm, suspected
from api.quality.calibration import Channel
from api.quality.estimate import overall, samples
from api.quality.policies import sampling_rate

DAY_MS: Final = 24 * 3600 * 1000
CALLED_SAME, CALLED_DIFFERENT = 0.02, 0.05
PAIRS: Final = 300
TARGET: Final = 0.02
LONGEST: Final = 20_000
"""Hits after which a simulation of a fault ends."""

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
    versions = Versions("e", "", "c")
    label = Label(Evidence(0.95), verdict, "shadow", True, kind, PolicyName.GUARDED, versions, chance, at_ms)
    return PooledLabel("s", tenant, label)


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


def estimated(rate: Rate, seed: int, hits: int, chance: float, *, noise: bool) -> Estimated:
    """Simulates a day of hits of which a share is labeled. Newer hits count more, as in the estimate."""
    random = np.random.default_rng(seed)
    called_same, called_different = (CALLED_SAME, CALLED_DIFFERENT) if noise else (0.0, 0.0)
    errors = (int(random.binomial(PAIRS, called_same)), int(random.binomial(PAIRS, called_different)))
    confusion = Confusion(PAIRS, errors[0], PAIRS, errors[1]) if noise else Confusion()
    at = np.sort(random.random(hits))
    wrong = random.random(hits) < np.array([rate(one) for one in at])
    weight = 0.5 ** (1 - at)
    said = np.where(wrong, random.random(hits) >= called_same, random.random(hits) < called_different)
    picked = np.flatnonzero(random.random(hits) < chance)
    labels = [shadow(wrong=bool(said[one]), chance=chance, at_ms=round(DAY_MS * at[one])) for one in picked]
    truth = float((wrong * weight).sum() / weight.sum())
    return Estimated(truth, overall(samples(labels, DAY_MS), confusion, {}))


def hits_until_tightened(error: float, seed: int, chance: float, *, noise: bool) -> int:
    """Returns how many hits with an error pass until the fleet tightens; `LONGEST` if it does not.

    While the newest labels look like a fault, more hits are sampled.
    """
    random = np.random.default_rng(seed)
    channel = Channel(CALLED_SAME, CALLED_DIFFERENT) if noise else Channel()
    labels: list[Label] = []
    hits = 0
    while hits < LONGEST:
        state = QualityState(suspected=suspected(labels[-100:], channel, TARGET))
        hits += int(random.geometric(sampling_rate(chance, state)))
        wrong = random.random() < error
        said = random.random() >= channel.called_same if wrong else random.random() < channel.called_different
        labels.append(shadow(wrong=bool(said), chance=chance).label)
        if len(labels) % 5 == 0 and alarm(labels[-500:], channel, TARGET):
            return min(hits, LONGEST)
    return LONGEST


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
                comparator = "2 / 5 % wrong" if noise else "right"
                print(
                    f"| {name} | {hits:,} | {chance:.0%} | {comparator} | {share:.1%} | {np.mean(widths):.3f} | "
                    f"{min(widths):.3f} |",
                    flush=True,
                )


def _tightening(seeds: int) -> None:
    print("\n| true error | sampled | comparator | hits until the fleet tightens, median | 90 % | not in 20,000 |")
    print("|---|---|---|---|---|---|")
    for error, chances in ((0.1, (0.01, 0.02, 0.05, 0.1, 0.2)), (0.02, (0.1,)), (0.01, (0.1,)), (0.005, (0.1,))):
        for chance in chances:
            for noise in (False, True):
                found = [hits_until_tightened(error, seed, chance, noise=noise) for seed in range(seeds)]
                comparator = "2 / 5 % wrong" if noise else "right"
                never = sum(one == LONGEST for one in found) / seeds
                print(
                    f"| {error:.1%} | {chance:.0%} | {comparator} | {np.median(found):,.0f} | "
                    f"{np.quantile(found, 0.9):,.0f} | {never:.0%} |",
                    flush=True,
                )


def main(seeds: int = 200, tightening_seeds: int = 40) -> None:
    """Prints both tables."""
    _coverage(seeds)
    _tightening(tightening_seeds)


if __name__ == "__main__":
    typer.run(main)
