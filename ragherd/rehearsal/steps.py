"""The steps of a rehearsal as data, and how they are run one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ragherd.rehearsal.kubectl import ClusterUnreachable, KubectlError
from ragherd.rehearsal.load import Load
from ragherd.rehearsal.rehearsal import Rehearsal, StepFailed

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step saw: a line, and figures."""

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """`skip` returns why a step makes no sense on this cluster, or ''. Without a `vital` one, only those follow
    that are `always` run. `tidy` restores what the step changed, also after a failure.
    """

    name: str
    expects: str
    run: Callable[[Rehearsal], Seen]
    skip: Callable[[Rehearsal], str] = lambda _: ""
    tidy: Callable[[Rehearsal], None] = lambda _: None
    vital: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended."""

    name: str
    expects: str
    outcome: str
    seen: str
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        return {
            "name": self.name,
            "expects": self.expects,
            "result": self.outcome,
            "seen": self.seen,
            "seconds": round(self.seconds, 1),
            "figures": dict(self.figures),
        }


class LoadSuffered(StepFailed):
    """Requests failed in a step that promises none."""

    def __init__(self, message: str, figures: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


def results(steps: Iterable[Step], rehearsal: Rehearsal, began: Callable[[Step], None]) -> Iterator[Result]:
    """Runs every step, and yields its result. Raises `ClusterUnreachable`."""
    impossible = ""
    for step in steps:
        if why := ("" if step.always else impossible) or step.skip(rehearsal):
            yield Result(step.name, step.expects, SKIPPED, why)
            continue
        began(step)
        result = _result(step, rehearsal)
        yield result
        if step.vital and result.outcome == FAILED:
            impossible = f"needs the step: {step.name}"


def _result(step: Step, rehearsal: Rehearsal) -> Result:
    start, figures = time.monotonic(), {}
    try:
        seen = step.run(rehearsal)
        outcome, text, figures = PASSED, seen.text, dict(seen.figures)
    except ClusterUnreachable:
        raise
    except LoadSuffered as error:
        outcome, text, figures = FAILED, str(error), dict(error.figures)
    except (StepFailed, KubectlError) as error:
        outcome, text = FAILED, str(error)
    try:
        step.tidy(rehearsal)
    except ClusterUnreachable:
        raise
    except (StepFailed, KubectlError) as error:
        outcome, text = FAILED, f"{text}; afterwards: {error}"
    return Result(step.name, step.expects, outcome, text, time.monotonic() - start, figures)


def without_failures(load: Load, text: str, **figures: Any) -> Seen:
    """Returns what a step saw under load. Raises `LoadSuffered` if a request failed."""
    seen = counted(load, text, **figures)
    if load.found["failed"]:
        raise LoadSuffered(seen.text, seen.figures)
    return seen


def counted(load: Load, text: str, **figures: Any) -> Seen:
    """Returns what a step saw under load, whatever failed."""
    found = {"load": load.figures(), **figures}
    errors = ", ".join(f"{count} x {kind}" for kind, count in load.found["errors"].items())
    failed = f"{load.found['failed']} of {load.found['requests']} requests failed{f' ({errors})' if errors else ''}"
    return Seen(f"{text}; {failed}", found)
