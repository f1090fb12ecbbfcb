"""What a deployment must reach, and whether it did: met, missed, or not measurable with the reason. Does no I/O.

Gaps bound what can be concluded. A share is judged at both ends of what the gaps allow: as if in every gap all had gone
well, and as if nothing had. It is met or missed only if both ends agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ragherd.report_figures import WindowFigures

LEAST_CLOSED: Final = 0.95
LEAST_HITS: Final = 0.20
GOOD_HITS: Final = 0.30
MOST_ERRORS: Final = 0.05
LEAST_REDUCTION: Final = 0.40
LEAST_CAPACITY: Final = 2.0
GOOD_CAPACITY: Final = 3.0
LEAST_SAVED: Final = 0.40
MOST_FALSE_HITS: Final = 0.02

LEAST_QUERIES: Final = 100
"""With fewer queries a share says little: 95 % confidence spans 20 points and more."""
LEAST_UNCACHED: Final = 20
WANTED: Final = "not-cached"
"""The error of a caller who accepts a cached answer only, as `ragherd smoke` does. Nothing has failed."""
MOST_UNKNOWN: Final = 0.1
"""The largest share of gaps with which a mean is still judged."""
SAFETY: Final = frozenset({"error_rate", "restarts", "false_hit_rate"})
"""A release that misses one of these harms users."""
NEEDED: Final = SAFETY | {"breaker_closed"}
"""Without these nobody can say that a release is safe."""
GO, WAIT, ROLL_BACK = "go", "wait", "roll back"


@dataclass(frozen=True, slots=True)
class Criterion:
    """`met` is None if it cannot be measured; `detail` then is the reason. `target` is exclusive except for 0."""

    name: str
    title: str
    target: float
    measured: float | None
    met: bool | None
    detail: str

    def document(self) -> dict[str, Any]:
        measured = None if self.measured is None else round(self.measured, 6)
        return {
            "name": self.name,
            "title": self.title,
            "target": self.target,
            "measured": measured,
            "met": self.met,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class CapacityRatio:
    """How many times as many questions are answered as without the cache, and how that was found."""

    ratio: float | None
    formula: str


def criteria_of(figures: WindowFigures, capacity: CapacityRatio, quality: Mapping[str, Any] | None) -> list[Criterion]:
    """Returns every criterion. `quality`: `false_hit_rate` and `max_error_rate`, or None if unknown."""
    return [
        _closed(figures),
        _hit_rate(figures),
        _error_rate(figures),
        _latency(figures),
        _capacity(capacity),
        _saved(figures),
        _restarts(figures),
        _false_hits(quality),
    ]


# -- Shares ------------------------------------------------------------------------------------------------------------


def bounds(part: float, whole: float, unknown: float) -> tuple[float, float]:
    """Returns the least and the largest share if nothing is known of `unknown` more."""
    return part / (whole + unknown), (part + unknown) / (whole + unknown)


def _in_gaps(figures: WindowFigures, count: float) -> float:
    """Returns how many the gaps would have had at the rate of the known time."""
    return count * figures.unknown / figures.known if figures.known else 0.0


def _gap_note(figures: WindowFigures) -> str:
    minutes = figures.unknown / 60
    return f"; gaps of {minutes:,.0f} min are counted both ways" if minutes >= 1 else ""


def _unclear(low: float, high: float) -> str:
    return f"with the gaps it lies between {100 * low:.1f} % and {100 * high:.1f} %"


def _closed(figures: WindowFigures) -> Criterion:
    """Judges the breaker that was CLOSED for the smallest share of time."""
    name, title = "breaker_closed", "Breaker CLOSED"
    totals = {one: sum(states.values()) for one, states in figures.breakers.items()}
    shares = {one: figures.breakers[one].get("CLOSED", 0.0) / total for one, total in totals.items() if total}
    if not shares:
        return Criterion(name, title, LEAST_CLOSED, None, None, "the times of the breakers are not known")
    worst = min(shares, key=lambda one: shares[one])
    total = totals[worst]
    low, high = bounds(shares[worst] * total, total, max(0.0, figures.ends - figures.begins - total))
    met = True if low > LEAST_CLOSED else False if high <= LEAST_CLOSED else None
    said = f"breaker {worst}{_gap_note(figures)}" if met is not None else f"breaker {worst}: {_unclear(low, high)}"
    return Criterion(name, title, LEAST_CLOSED, shares[worst], met, said)


def _hit_rate(figures: WindowFigures) -> Criterion:
    name, title = "hit_rate", "Cache hit rate"
    hits, looked_up = figures.queries["hit"], figures.queries["hit"] + figures.queries["miss"]
    if looked_up < LEAST_QUERIES:
        return Criterion(name, title, LEAST_HITS, None, None, _too_few(looked_up, "look-ups", LEAST_QUERIES))
    low, high = bounds(hits, looked_up, _in_gaps(figures, looked_up))
    met = True if low > LEAST_HITS else False if high <= LEAST_HITS else None
    grade = "good" if low > GOOD_HITS else f"good is over {100 * GOOD_HITS:.0f} %"
    said = f"{hits:,} hits of {looked_up:,} look-ups; {grade}{_gap_note(figures)}"
    return Criterion(name, title, LEAST_HITS, hits / looked_up, met, said if met is not None else _unclear(low, high))


def _error_rate(figures: WindowFigures) -> Criterion:
    name, title = "error_rate", "Error rate"
    errors = max(0, figures.queries["error"] - figures.errors[WANTED])
    queries = figures.answers + errors
    if queries < LEAST_QUERIES:
        return Criterion(name, title, MOST_ERRORS, None, None, _too_few(queries, "queries", LEAST_QUERIES))
    low, high = bounds(errors, queries, _in_gaps(figures, queries))
    met = True if high < MOST_ERRORS else False if low >= MOST_ERRORS else None
    said = f"{errors:,} of {queries:,} queries{_gap_note(figures)}"
    return Criterion(name, title, MOST_ERRORS, errors / queries, met, said if met is not None else _unclear(low, high))


def _too_few(found: int, what: str, least: int) -> str:
    return f"{found:,} {what} are too few; at least {least:,} are needed"


# -- Means -------------------------------------------------------------------------------------------------------------


def _why_no_mean(figures: WindowFigures) -> str:
    """Returns why a mean of the window cannot be judged, or ''."""
    if figures.generated < LEAST_UNCACHED:
        return _too_few(figures.generated, "generated answers", LEAST_UNCACHED)
    if figures.answers < LEAST_QUERIES:
        return _too_few(figures.answers, "answers", LEAST_QUERIES)
    unknown = figures.unknown / (figures.ends - figures.begins)
    return f"{100 * unknown:.0f} % of the window are gaps" if unknown > MOST_UNKNOWN else ""


def _latency(figures: WindowFigures) -> Criterion:
    name, title = "latency_reduction", "Latency reduction"
    why = _why_no_mean(figures)
    if not why and not (figures.mean_ms and figures.uncached_ms):
        why = "the latencies are not known"
    if why or figures.mean_ms is None or figures.uncached_ms is None:
        return Criterion(name, title, LEAST_REDUCTION, None, None, why)
    reduction = 1 - figures.mean_ms / figures.uncached_ms
    said = (
        f"mean of all answers {figures.mean_ms:,.0f} ms; uncached, {figures.uncached_is}, {figures.uncached_ms:,.0f} ms"
    )
    return Criterion(name, title, LEAST_REDUCTION, reduction, reduction > LEAST_REDUCTION, said)


def capacity_of(figures: WindowFigures, load_test: Mapping[str, Any] | None) -> CapacityRatio:
    """Returns the capacity from a load test in a closed loop without pauses. Otherwise from the window."""
    tested = None if load_test is None else _tested_capacity(load_test)
    if tested is not None:
        return tested
    note = "" if load_test is None else " The load test says nothing: it needs users without --think, and misses."
    formula = f"Answers per generation in the window, as long as generation is the bottleneck.{note}"
    if why := _why_no_mean(figures):
        return CapacityRatio(None, f"{why[0].upper()}{why[1:]}.{note}")
    return CapacityRatio(figures.answers / figures.generated, formula)


def _tested_capacity(found: Mapping[str, Any]) -> CapacityRatio | None:
    plan, miss = found["plan"], found["latency_ms_by_status"].get("miss")
    closed = plan["rate"] is None and not plan["think"] and plan["spike"] == 1 and not plan["ramp"]
    if not closed or not miss or found["requests_by_status"]["miss"] < LEAST_UNCACHED or not found["seconds"]:
        return None
    uncached = plan["concurrency"] / (miss["avg"] / 1000)
    ratio = (found["requests"] - found["failed"]) / found["seconds"] / uncached
    formula = (
        f"From the load test: answers per second, divided by those of {plan['concurrency']:,} users who each wait "
        f"{miss['avg']:,.0f} ms, the mean of a miss."
    )
    return CapacityRatio(ratio, formula)


def _capacity(capacity: CapacityRatio) -> Criterion:
    met = None if capacity.ratio is None else capacity.ratio >= LEAST_CAPACITY
    grade = ""
    if capacity.ratio is not None:
        grade = "; good" if capacity.ratio >= GOOD_CAPACITY else f"; good is {GOOD_CAPACITY:g}"
    said = f"{capacity.formula.removesuffix('.')}{grade}"
    return Criterion("capacity", "Capacity, times uncached", LEAST_CAPACITY, capacity.ratio, met, said)


def _saved(figures: WindowFigures) -> Criterion:
    name, title = "cost_saved", "Cost saved"
    if why := _why_no_mean(figures):
        return Criterion(name, title, LEAST_SAVED, None, None, why)
    share = figures.served / figures.answers
    said = f"{figures.served:,} of {figures.answers:,} answers needed no generation; each counts as an average one"
    return Criterion(name, title, LEAST_SAVED, share, share > LEAST_SAVED, said)


# -- Restarts and wrong answers ----------------------------------------------------------------------------------------


def _restarts(figures: WindowFigures) -> Criterion:
    name, title, restarts = "restarts", "Crashes and restarts", figures.restarts
    if restarts is None:
        return Criterion(name, title, 0, None, None, "this source does not count restarts")
    if restarts:
        said = "workers that replaced another one, also for a reload or MAX_REQUESTS"
        return Criterion(name, title, 0, restarts, False, said)
    if figures.unexplained_starts:
        said = f"{figures.unexplained_starts:,} workers started again: a rollout, or a replica that crashed"
        return Criterion(name, title, 0, None, None, said)
    if figures.unknown >= 60:
        return Criterion(name, title, 0, None, None, "none was seen, but a gap can hide one")
    return Criterion(name, title, 0, 0, True, "no worker was replaced")


def _false_hits(quality: Mapping[str, Any] | None) -> Criterion:
    name, title = "false_hit_rate", "Wrong answers from the cache"
    if quality is None:
        return Criterion(name, title, MOST_FALSE_HITS, None, None, "the false-hit rate is not known")
    target, rate = quality["max_error_rate"], quality["false_hit_rate"]
    if rate["estimate"] is None or rate["low"] is None or rate["high"] is None:
        return Criterion(name, title, target, None, None, "no answer from the cache has been labeled yet")
    met = True if rate["high"] <= target else False if rate["low"] > target else None
    span = f"95 % interval {100 * rate['low']:.2f} % to {100 * rate['high']:.2f} %, {rate['samples']:,} labels"
    more = "" if met is not None else "; more labels are needed"
    return Criterion(name, title, target, rate["estimate"], met, f"{span}{more}")


# -- Recommendation ----------------------------------------------------------------------------------------------------


def recommended(
    criteria: Sequence[Criterion], observed: float, least: float, health: str | None
) -> tuple[str, list[str]]:
    """Returns go, wait or roll back, with the reasons. `observed`, `least`: seconds known and wanted."""
    missed = [one for one in criteria if one.met is False]
    if harmful := [one for one in missed if one.name in SAFETY]:
        return ROLL_BACK, [_missed(one) for one in harmful]
    reasons = [_missed(one) for one in missed]
    reasons += [_unknown(one) for one in criteria if one.met is None and one.name in NEEDED]
    if observed < least:
        reasons.append(f"Only {duration(observed)} of the {duration(least)} that a decision needs are known.")
    if health not in (None, "healthy"):
        reasons.append(f"The service is {health} now.")
    if reasons:
        return WAIT, reasons
    return GO, list(_good_reasons(criteria))


def _missed(one: Criterion) -> str:
    return f"{one.title}: {figure(one)}, {target_text(one)}."


def _unknown(one: Criterion) -> str:
    return f"{one.title}: not measurable; {one.detail}."


def _good_reasons(criteria: Sequence[Criterion]) -> Iterator[str]:
    measured = sum(one.met is True for one in criteria)
    yield f"{measured} of {len(criteria)} criteria are met, and none is missed."
    for one in criteria:
        if one.met is None:
            yield _unknown(one)


def figure(one: Criterion, value: float | None = None) -> str:
    """Returns the measured value, or another one, in the criterion's unit."""
    number = one.measured if value is None else value
    if number is None:
        return "-"
    if one.name == "restarts":
        return f"{number:,.0f}"
    return f"{number:.2f} times" if one.name == "capacity" else f"{100 * number:.{2 if number < 0.1 else 1}f} %"


def target_text(one: Criterion) -> str:
    """Returns the target in words."""
    if one.name == "restarts":
        return "target none"
    if one.name == "capacity":
        return f"target {one.target:g} times"
    side = "under" if one.name in SAFETY else "over"
    return f"target {side} {100 * one.target:g} %"


def milliseconds(value: float | None) -> str:
    """Returns a latency with about three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def duration(seconds: float) -> str:
    """Returns a time span in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
    return f"{minutes} min" if minutes else f"{rest} s"
