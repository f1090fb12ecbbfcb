"""Which differences between two benchmarks are real. Does no I/O.

The unit of chance is a round, not a request: requests of a round share its noise, so many of them would look far more
certain than they are. Successive rounds are drawn together (a circular block bootstrap), because noise often lasts
longer than a round. The spread of the draws gives the standard error, Student's t the interval: it is wide enough for
few rounds. The intervals hold together with 95 % confidence: each of M comparisons has 1 - 0.05 / M (Bonferroni).

What differs between two runs but not between rounds, such as a busier machine, looks like a real difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ragherd.load_plan import GROWTH

RESAMPLES: Final = 500
BLOCKS: Final = 8
"""An eighth of the rounds, successive ones, are drawn together."""
LEAST_ROUNDS: Final = 10
PERCENTILES: Final = (50, 95, 99)
LEAST_BEYOND: Final = 3
"""A percentile needs this many requests beyond it, on average in an eighth of the rounds."""
RISK: Final = 0.05
RESOLUTION: Final = 0.01
"""Smaller changes of a latency are below what the buckets resolve."""
MORE_ERRORS: Final = 0.01
"""A higher error rate is a regression from this increase on, whatever the tolerance is."""
T_DRAWS: Final = 400_000
ALL: Final = "all"

Floats = NDArray[np.float64]
Round = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both benchmarks. `change` is relative for latency and requests/s, else a difference of shares.

    `low` and `high` bound the change. `worse`: the change is for the worse; `real`: it is not chance.
    """

    name: str
    unit: str
    base: float
    new: float
    change: float
    low: float
    high: float
    real: bool
    worse: bool
    regression: bool

    @property
    def verdict(self) -> str:
        if not self.real:
            return "no difference"
        return "worse" if self.worse else "better"

    def document(self) -> dict[str, Any]:
        return {**{name: _rounded(value) for name, value in asdict(self).items()}, "verdict": self.verdict}


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of one benchmark: its value, and its values in the draws. `is_ratio`: both are logarithms."""

    name: str
    unit: str
    value: float
    drawn: Floats
    blocks: float
    is_ratio: bool
    higher_is_worse: bool


def compare(base: Sequence[Round], new: Sequence[Round], tolerance: float) -> list[Difference]:
    """Returns every figure that both have. A regression is real, and worse than the tolerance."""
    before, after = ({one.name: one for one in figures_of(rounds, seed)} for seed, rounds in enumerate((base, new)))
    shared = [name for name in before if name in after]
    return [_difference(before[name], after[name], RISK / len(shared), tolerance) for name in shared]


def figures_of(rounds: Sequence[Round], seed: int) -> Iterator[Figure]:
    """Yields the figures that the rounds are enough for."""
    weights = draws(len(rounds), seed)
    blocks = len(rounds) / block_of(len(rounds))
    names = sorted({name for one in rounds for name in one["latency"]}, key=lambda name: (name != ALL, name))
    for name in names:
        for percent, value, drawn in _percentiles(rounds, name, weights):
            yield Figure(f"latency p{percent}, {name}", "ms", value, drawn, blocks, True, True)
    for name, unit, part, whole, is_ratio, worse in (
        ("requests per second", "1/s", "requests", "seconds", True, False),
        ("hit rate", "share", "hits", "looked_up", False, False),
        ("error rate", "share", "failed", "requests", False, True),
    ):
        parts, wholes = (np.array([one[field] for one in rounds], float) for field in (part, whole))
        if wholes.sum() and (parts.sum() or not is_ratio):
            drawn = (weights @ parts) / np.maximum(weights @ wholes, 1e-9)
            value = float(parts.sum()) / float(wholes.sum())
            if is_ratio:
                drawn, value = np.log(np.maximum(drawn, 1e-9)), math.log(value)
            yield Figure(name, unit, value, drawn, blocks, is_ratio, worse)


def block_of(rounds: int) -> int:
    """Returns how many successive rounds are drawn together."""
    return max(1, rounds // BLOCKS)


def draws(rounds: int, seed: int) -> Floats:
    """Returns how often each round occurs in each draw."""
    block = block_of(rounds)
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, -(-rounds // block)))
    chosen = ((starts[:, :, None] + np.arange(block)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    weights = np.zeros((RESAMPLES, rounds))
    np.add.at(weights, (np.arange(RESAMPLES)[:, None], chosen), 1.0)
    return weights


def _percentiles(rounds: Sequence[Round], name: str, weights: Floats) -> Iterator[tuple[int, float, Floats]]:
    """Yields the logarithms of the percentiles of one cache status."""
    sketches = [{int(bucket): count for bucket, count in one["latency"].get(name, {}).items()} for one in rounds]
    buckets = sorted({bucket for sketch in sketches for bucket in sketch})
    place = {bucket: number for number, bucket in enumerate(buckets)}
    counts = np.zeros((len(rounds), len(buckets)))
    for row, sketch in enumerate(sketches):
        for bucket, count in sketch.items():
            counts[row, place[bucket]] = count
    edges = np.array(buckets, float) * GROWTH
    merged = np.vstack([np.ones(len(rounds)), weights]) @ counts
    for percent in PERCENTILES:
        if counts.sum() * (1 - percent / 100) < LEAST_BEYOND * BLOCKS:
            continue
        found = _quantiles(merged, edges, percent / 100)
        yield percent, float(found[0]), found[1:]


def _quantiles(merged: Floats, edges: Floats, share: float) -> Floats:
    """Returns the quantile of each row, interpolated within its bucket."""
    below = np.cumsum(merged, axis=1)
    rank = share * below[:, -1]
    place = np.minimum((below < rank[:, None]).sum(axis=1), len(edges) - 1)
    rows = np.arange(len(merged))
    inside = merged[rows, place]
    before = below[rows, place] - inside
    fraction = np.divide(rank - before, inside, out=np.full(len(merged), 0.5), where=inside > 0)
    found: Floats = edges[place] + fraction * GROWTH
    return found


def _difference(base: Figure, new: Figure, risk: float, tolerance: float) -> Difference:
    errors = [float(one.drawn.std(ddof=1)) * math.sqrt(one.blocks / (one.blocks - 1)) for one in (base, new)]
    error, change = math.hypot(*errors), new.value - base.value
    reach = error * _quantile_of_t(_freedom(errors, (base.blocks, new.blocks)), risk) if error else 0.0
    low, high = change - reach, change + reach
    values = base.value, new.value
    if base.is_ratio:
        change, low, high = (math.expm1(one) for one in (change, low, high))
        values = math.exp(base.value), math.exp(new.value)
    resolution = RESOLUTION if base.is_ratio else 0.0
    real = (low > 0 or high < 0) and abs(change) > resolution
    worse = change > 0 if base.higher_is_worse else change < 0
    limit = MORE_ERRORS if base.name == "error rate" else tolerance
    return Difference(
        base.name, base.unit, *values, change, low, high, real, worse, real and worse and abs(change) > limit
    )


def _freedom(errors: Sequence[float], blocks: Sequence[float]) -> int:
    """Returns Welch's degrees of freedom."""
    squares = [error**2 for error in errors]
    spread = sum(square**2 / (many - 1) for square, many in zip(squares, blocks, strict=True))
    return max(1, int(sum(squares) ** 2 / spread))


@lru_cache(maxsize=256)
def _quantile_of_t(freedom: int, risk: float) -> float:
    """Returns what Student's t exceeds, on either side, with this probability."""
    drawn = np.abs(np.random.default_rng(1).standard_t(freedom, T_DRAWS))
    return float(np.quantile(drawn, 1 - risk))
