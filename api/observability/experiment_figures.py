"""Compares the variants of an experiment, with intervals that hold however often somebody looks at them. Pure.

A test for a fixed number of requests, looked at again and again, says "difference" sooner or later although there is
none. The intervals here are asymptotic confidence sequences: with the given probability they contain the true value at
all times together, so one may look at any time and stop as soon as they show something. They need no equal
distributions: a hit rate that rises while a cache fills is covered as the mean of the rates so far.

Source: I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy, A. Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", The Annals of Statistics 52 (2024) 2613-2640, arXiv:2103.06476.

Requests of one client or of one question resemble each other. So the variance is estimated between groups of units,
by the linearized variance of a ratio as in surveys of clusters. It is at least that of independent requests, which is
estimated with one more event and one more request without it: rare events have a variance, too, before the first.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from api.observability.history_figures import BOUNDS_MS, BUCKETS, LOG_SCALE, PERCENTILES, percentile
from api.ports.answer_quality import QualityState
from api.ports.experiment import WHOLE, Experiment, VariantSpec
from api.values import CacheStatus

# -- intervals ---------------------------------------------------------------------------------------------------------

ERROR: Final = 0.05
"""The probability that an interval ever misses the true value."""
SHARPEST_AT: Final = 5_000
"""The number of requests at which the intervals are as narrow as possible."""
LEAST_SAMPLES: Final = 100
"""Fewer do not follow a normal distribution well enough."""
LEAST_GROUPS: Final = 10
"""Groups without which the variance between them is unknown."""

Shown = Literal["higher", "lower", "no difference shown", "too early"]
Counts = tuple[float, float]
"""Of one group: the sum of the values, and their number."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over requests, and its standard error. `groups`: how many groups of units have a value."""

    value: float
    error: float
    samples: float
    groups: int

    @property
    def is_known(self) -> bool:
        """Whether there is enough to say something."""
        return self.samples >= LEAST_SAMPLES and self.groups >= LEAST_GROUPS


def mean_of(groups: Sequence[Counts], variance: float | None = None) -> Mean | None:
    """Returns the mean of values counted by groups; None without any. `variance`: of single values; None for shares."""
    known = [(total, number) for total, number in groups if number]
    samples = sum(number for _, number in known)
    if not samples:
        return None
    total = sum(total for total, _ in known)
    value = total / samples
    if variance is None:
        share = (total + 1) / (samples + 2)
        variance = share * (1 - share)
    alone = variance / samples
    between = 0.0
    if len(known) > 1:
        squares = sum((total - value * number) ** 2 for total, number in known)
        between = squares / samples**2 * len(known) / (len(known) - 1)
    return Mean(value, math.sqrt(max(alone, between)), samples, len(known))


def interval(mean: Mean, error: float = ERROR) -> tuple[float, float]:
    """Returns the bounds that contain the true mean at all times, but for the probability `error`."""
    width = _width(mean.error, mean.samples, error)
    return mean.value - width, mean.value + width


@dataclass(frozen=True, slots=True)
class Difference:
    """How much one mean is above the other, with bounds, and what that shows."""

    value: float
    low: float
    high: float
    shown: Shown


def difference(one: Mean | None, control: Mean | None, error: float = ERROR) -> Difference | None:
    """Returns how much `one` is above the control; None if either is unknown."""
    if one is None or control is None:
        return None
    value = one.value - control.value
    width = _width(math.hypot(one.error, control.error), one.samples + control.samples, error)
    shown: Shown = "no difference shown"
    if not (one.is_known and control.is_known):
        shown = "too early"
    elif value - width > 0:
        shown = "higher"
    elif value + width < 0:
        shown = "lower"
    return Difference(value, value - width, value + width, shown)


def _width(standard_error: float, samples: float, error: float) -> float:
    """Returns half the width of the interval: theorem 2.2 of the source, and its rho for `SHARPEST_AT`."""
    steepness = -2 * math.log(error)
    spread = samples * (steepness + math.log(steepness + 1)) / SHARPEST_AT
    return standard_error * math.sqrt((spread + 1) / spread * math.log((spread + 1) / error**2))


# -- reading -----------------------------------------------------------------------------------------------------------

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that variants are compared by: the sum of `what` divided by that of `per`, over all groups."""

    name: str
    words: str
    what: str
    per: tuple[str, ...]
    better: Better


LATENCY: Final = Measure("latency", "latency", "log", ("answer",), "lower")
MEASURES: Final = (
    Measure("hit_rate", "hit rate", "hit", ("hit", "miss"), "higher"),
    LATENCY,
    Measure("error_rate", "errors", "error", ("answer", "error"), "lower"),
    Measure("false_hit_rate", "wrong cached answers", "different", ("same", "different"), "lower"),
    Measure("bad_feedback_rate", "bad feedback", "bad", ("good", "bad"), "lower"),
)


@dataclass(slots=True)
class VariantFigures:
    """The counts of one variant: totals by kind and name, and those of each group of units."""

    totals: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    groups: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def mean(self, measure: Measure) -> Mean | None:
        """Returns a measure of the variant; that of the latency is of its logarithm."""
        counts: Iterable[Counts] = (
            (group[measure.what], sum(group[name] for name in measure.per)) for group in self.groups.values()
        )
        if measure is not LATENCY:
            return mean_of(list(counts))
        logs = [(total / LOG_SCALE, number) for total, number in counts]
        return mean_of(logs, _log_variance(self.totals["latency"]))


def figures_of(figures: Mapping[str, int]) -> dict[str, VariantFigures]:
    """Returns the counts of an experiment by variant. Ignores names of a later release."""
    found: defaultdict[str, VariantFigures] = defaultdict(VariantFigures)
    for name, number in figures.items():
        match name.split(":"):
            case [variant, "group", group, what]:
                found[variant].groups[group][what] += number
            case [variant, kind, what]:
                found[variant].totals[kind][what] += number
    return found


def _log_variance(buckets: Mapping[str, int]) -> float:
    """Returns the variance of the logarithms of latencies, from their buckets."""
    edges = (BOUNDS_MS[0] / 2, *BOUNDS_MS, 1.25 * BOUNDS_MS[-1])
    middles = {name: math.log(low * high) / 2 for name, low, high in zip(BUCKETS, edges, edges[1:], strict=False)}
    counted = [(middles[name], number) for name, number in buckets.items() if name in middles]
    number = sum(count for _, count in counted)
    if not number:
        return 0.0
    mean = sum(middle * count for middle, count in counted) / number
    return sum((middle - mean) ** 2 * count for middle, count in counted) / number


# -- what it shows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compared:
    """A variant compared with the control by one measure. `good`: whether a difference that is shown is good."""

    measure: Measure
    found: Difference | None

    @property
    def shown(self) -> Shown:
        """What the difference shows."""
        return self.found.shown if self.found is not None else "too early"

    @property
    def good(self) -> bool | None:
        """Whether the variant is better by this measure; None if no difference is shown."""
        return self.shown == self.measure.better if self.shown in ("higher", "lower") else None


def compared(one: VariantFigures, control: VariantFigures, others: int) -> list[Compared]:
    """Compares a variant with the control. `others`: how many variants are compared with it.

    All comparisons of an experiment together show a difference that is not there with a probability of at most `ERROR`.
    """
    error = ERROR / (len(MEASURES) * others)
    return [Compared(each, difference(one.mean(each), control.mean(each), error)) for each in MEASURES]


Judgement = Literal["better", "worse", "mixed", "no difference shown", "too early"]


def judged(found: Sequence[Compared]) -> Judgement:
    """Returns what the comparisons of a variant show in one word."""
    good = {one.good for one in found} - {None}
    if good:
        return "mixed" if len(good) == 2 else "better" if True in good else "worse"
    return "too early" if found[0].shown == "too early" and found[1].shown == "too early" else "no difference shown"


def report(experiment: Experiment, figures: Mapping[str, int], quality: QualityState, now_ms: int) -> dict[str, Any]:
    """Returns an experiment with its figures, comparisons and verdict, as JSON shows it."""
    found = figures_of(figures)
    control, *others = experiment.variants
    comparisons = []
    for one in others:
        measures = compared(
            found.get(one.name) or VariantFigures(), found.get(control.name) or VariantFigures(), len(others)
        )
        judgement = judged(measures)
        comparisons.append(
            {
                "variant": one.name,
                "control": control.name,
                "verdict": judgement,
                "summary": _summary(one.name, judgement, measures) + _caution(experiment, one, control),
                "measures": {each.measure.name: _difference(each) for each in measures},
            }
        )
    return {
        **summary(experiment, experiment.state(now_ms)),
        "variants": [
            _variant(experiment, one, found.get(one.name) or VariantFigures(), quality) for one in experiment.variants
        ],
        "comparisons": comparisons,
        "error": ERROR,
    }


def summary(experiment: Experiment, state: str) -> dict[str, Any]:
    """Returns what an experiment is."""
    return {
        "name": experiment.name,
        "state": state,
        "unit": experiment.unit,
        "share_answers": experiment.share_answers,
        "started": _time(experiment.started_ms),
        "ends": _time(experiment.ends_ms),
        "stopped": _time(experiment.stopped_ms) if experiment.stopped_ms else None,
        "by": experiment.by,
        "variants": [_spec(one) for one in experiment.variants],
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _spec(spec: VariantSpec) -> dict[str, Any]:
    return {"name": spec.name, "share": spec.share * 100 / WHOLE, "settings": dict(spec.settings)}


def _variant(
    experiment: Experiment, spec: VariantSpec, figures: VariantFigures, quality: QualityState
) -> dict[str, Any]:
    label = f"{experiment.name}/{spec.name}"
    queries, latency = figures.totals["queries"], figures.totals["latency"]
    groups = sum(figures.groups.values(), Counter[str]())
    rates = {one.name: _rate(figures.mean(one)) for one in MEASURES if one is not LATENCY}
    typical = _rate(figures.mean(LATENCY), in_ms=True)
    estimate = quality.by_variant.get(label)
    return {
        **_spec(spec),
        "requests": queries.total(),
        "queries": {**dict.fromkeys((*(one.value for one in CacheStatus), "error", "left"), 0), **queries},
        "hits": {"exact": 0, "semantic": 0, **figures.totals["hits"]},
        **rates,
        "latency_ms": {**{f"p{one}": percentile(latency, one) for one in PERCENTILES}, "typical": typical},
        "tokens": {"prompt": 0, "completion": 0, **figures.totals["tokens"]},
        "feedback": {name: groups[name] for name in ("good", "bad")},
        "labels": {name: groups[name] for name in ("same", "different")},
        "false_hits": estimate.figures() if estimate is not None else None,
        "level": max(quality.level, quality.variant_levels.get(label, (0,))[0]),
    }


def _rate(mean: Mean | None, *, in_ms: bool = False) -> dict[str, Any]:
    """Returns a mean with its interval. Nulls without samples."""
    if mean is None:
        return {"estimate": None, "low": None, "high": None, "samples": 0}
    low, high = interval(mean)
    values = [math.exp(min(one, 700)) for one in (mean.value, low, high)] if in_ms else _shares(mean.value, low, high)
    return {name: round(one, 6) for name, one in zip(("estimate", "low", "high"), values, strict=True)} | {
        "samples": int(mean.samples)
    }


def _shares(*values: float) -> list[float]:
    return [min(1.0, max(0.0, one)) for one in values]


def _difference(one: Compared) -> dict[str, Any]:
    """Returns a difference; that of the latency as a ratio."""
    bounds: dict[str, float | None] = {"difference": None, "low": None, "high": None}
    if (found := one.found) is not None:
        values = (found.value, found.low, found.high)
        if one.measure is LATENCY:
            values = tuple(math.expm1(min(value, 700)) for value in values)  # type: ignore[assignment]
        bounds = {name: round(value, 6) for name, value in zip(bounds, values, strict=True)}
    return {**bounds, "shown": one.shown, "good": one.good}


def _summary(name: str, judgement: Judgement, measures: Sequence[Compared]) -> str:
    """Returns the verdict in a sentence or two."""
    if judgement == "too early":
        return (
            f"{name}: too early to say anything. Each variant needs 100 requests of 10 groups of clients or questions."
        )
    shown = [f"{one.measure.words} {_words(one)}" for one in measures if one.good is not None]
    open_ones = [one.measure.words for one in measures if one.good is None]
    rest = f" No difference shown in {', '.join(open_ones)}." if open_ones else ""
    if few := [one.measure.words for one in measures if one.shown == "too early"]:
        rest += f" Too few samples yet: {', '.join(few)}."
    return f"{name} is {judgement}: {'; '.join(shown)}.{rest}" if shown else f"{name}:{rest}"


def _caution(experiment: Experiment, one: VariantSpec, control: VariantSpec) -> str:
    """Returns what makes hit rates and latencies differ anyway: a cache that more requests fill has more hits."""
    if experiment.share_answers or one.share == control.share:
        return ""
    return " The shares differ: the larger one fills its cache sooner, which alone changes hit rate and latency."


def _words(one: Compared) -> str:
    found = _difference(one)
    if one.measure is LATENCY:
        return f"{found['difference']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})"
    value, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
