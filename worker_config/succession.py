"""Who follows whom: pure rules, from how the workers stand to what the master does next.

A worker that is to go is replaced, never missed: its successor is started first, and serves before it leaves. One
successor starts at a time. A worker that goes for its memory or its age waits until the one before it is gone, so
that there is never more than one process more than wanted; new settings do not wait for long streams to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a worker is replaced; the most urgent first."""

    MEMORY = "memory"
    RELOAD = "reload"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Standing:
    """One living worker. `age`: the higher, the younger. `replaced`: it has been told to leave."""

    pid: int
    age: int
    ready: bool
    replaced: bool = False
    due: Reason | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Start so many workers; tell this one to leave."""

    start: int = 0
    replace: Standing | None = None


def next_step(workers: Sequence[Standing], wanted: int) -> Step:
    """What the master does now; called again at every turn of its loop."""
    staying = [worker for worker in workers if not worker.replaced]
    if len(staying) < wanted:
        return Step(start=wanted - len(staying))
    if any(not worker.ready for worker in staying):
        return Step()
    one_leaves = len(staying) < len(workers)
    due = [worker for worker in staying if worker.due and (worker.due is Reason.RELOAD or not one_leaves)]
    if len(staying) > wanted:
        return Step(replace=_first(due) if due else min(staying, key=lambda worker: worker.age))
    return Step(start=1) if due else Step()


def _first(due: Sequence[Standing]) -> Standing:
    """The most urgent, of these the oldest."""
    urgency = list(Reason)
    return min(due, key=lambda worker: (urgency.index(worker.due or Reason.REQUESTS), worker.age))
