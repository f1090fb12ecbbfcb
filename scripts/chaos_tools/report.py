"""Reports of runs as Markdown and JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any, Final, NamedTuple

from scripts.chaos_tools.plan import SKIPPED, as_json
from scripts.chaos_tools.run import Verdict
from scripts.chaos_tools.watch import Sample

PARTS: Final = 20
"""Parts of a soak whose means a line is fitted to. Samples that follow each other are too alike for an interval."""
QUANTILE: Final = 2.101
"""Student's t for 95 % and as many parts, less two."""
MIB: Final = 1 << 20


class Slope(NamedTuple):
    """A change per hour, with its 95 % confidence interval."""

    name: str
    value: float
    low: float
    high: float


def slopes(samples: Sequence[Sample]) -> list[Slope]:
    """Fits a line to the means of each resource. Needs a sample for each part."""
    kept = [_mean(samples[len(samples) * part // PARTS : len(samples) * (part + 1) // PARTS]) for part in range(PARTS)]
    hours = [(one.at - kept[0].at) / 3600 for one in kept]
    series = {
        "resident memory of all workers (MiB)": [one.memory / MIB for one in kept],
        "descriptors of all workers": [float(one.descriptors) for one in kept],
        "tasks of all workers": [float(one.tasks) for one in kept],
        "Redis memory (MiB)": [one.redis_memory / MIB for one in kept],
        "keys in Redis but rag:served:*": [float(one.keys) for one in kept],
        "keys rag:served:*, one for each answer": [float(one.served) for one in kept],
    }
    return [_slope(name, hours, values) for name, values in series.items()]


def _mean(samples: Sequence[Sample]) -> Sample:
    columns = zip(*map(astuple, samples), strict=True)
    return Sample(*map(statistics.fmean, columns))


def _slope(name: str, at: Sequence[float], values: Sequence[float]) -> Slope:
    slope, first = statistics.linear_regression(at, values)
    rest = sum((value - first - slope * x) ** 2 for x, value in zip(at, values, strict=True))
    middle = statistics.fmean(at)
    error = math.sqrt(rest / (len(at) - 2) / sum((x - middle) ** 2 for x in at))
    return Slope(name, slope, slope - QUANTILE * error, slope + QUANTILE * error)


def as_document(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "runs": [
            {
                "seed": one.seed,
                "seconds": round(one.seconds, 1),
                "plan": as_json([injected.fault for injected in one.injected]),
                "requests": dict(one.outcomes),
                "wrong": one.wrong,
                "lost": one.lost,
                "hung": one.hung,
                "operations": one.operations,
                "recoveries": one.recoveries,
                "samples": [asdict(sample) for sample in one.samples],
            }
            for one in verdicts
        ],
        "skipped": SKIPPED,
    }


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """The report for people."""
    outcomes = sum((one.outcomes for one in verdicts), Counter())
    operations = sum((Counter(one.operations) for one in verdicts), Counter())
    totals = {
        "seeds": len(verdicts),
        "seconds of load": round(sum(one.seconds for one in verdicts)),
        "faults": sum(len(one.injected) for one in verdicts),
        "requests": outcomes.total(),
        "answered": outcomes["ok"],
        "refused with a documented status": outcomes["refused"],
        "cut by a killed process": outcomes["cut"],
        "wrong": sum(len(one.wrong) for one in verdicts),
        "lost": sum(len(one.lost) for one in verdicts),
        "hung": sum(len(one.hung) for one in verdicts),
        **{f"operations in the histories of {name}": count for name, count in operations.items()},
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in totals.items()), ""]
    lines += ["| fault | times | recovery, median (s) | longest (s) |", "|---|---|---|---|"]
    by_kind: dict[str, list[float]] = {}
    for verdict in verdicts:
        for kind, seconds in verdict.recoveries.items():
            by_kind.setdefault(kind, []).extend(seconds)
    for kind, seconds in sorted(by_kind.items()):
        lines.append(f"| {kind} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    every = [seconds for found in by_kind.values() for seconds in found]
    if every:
        lines.append(f"| all | {len(every)} | {statistics.median(every):.1f} | {max(every):.1f} |")
    lines += ["", *(f"Skipped: {kind}. {reason}." for kind, reason in SKIPPED.items())]
    return "\n".join([*lines, *_faults(verdicts)]) + "\n"


def _faults(verdicts: Sequence[Verdict]) -> list[str]:
    found = []
    for one in verdicts:
        if one.failed:
            found += ["", f"## Seed {one.seed} failed", ""]
            found += [f"- {line}" for line in dict.fromkeys((*one.wrong, *one.lost, *one.hung))]
    return found
