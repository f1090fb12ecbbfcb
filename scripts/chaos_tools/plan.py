"""The plan of faults: made from a seed, replayed from a file, and made smaller while it still fails. No I/O."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

Kind = str
KINDS: Final[tuple[Kind, ...]] = (
    "worker killed",
    "worker stopped",
    "worker without descriptors",
    "worker at its memory limit",
    "clock jumps",
    "master killed",
    "workers reloaded",
    "replica upgraded",
    "redis killed",
    "redis stopped",
    "redis slow",
    "redis emptied",
    "redis read-only",
    "redis full",
    "redis connections cut",
    "redis half-open",
    "redis disk full",
    "redis failover",
    "ollama refuses",
    "ollama hangs",
    "ollama trickles",
    "ollama sends garbage",
    "ollama cuts answers",
    "ollama fails in a stream",
    "ollama ends without done",
    "ollama answers nothing",
    "ollama answers 500",
    "ollama connections cut",
)
SKIPPED: Final = {
    "hosts cut off": "tests/chaos/test_cut_off.py",
}
"""Faults that this command does not inject, and where they are tested instead."""

ISOLATED: Final = frozenset({"redis half-open", "redis disk full"})
"""Faults that need a network or a disk that nobody else uses: only root can have one."""
CLOCK: Final = "clock jumps"
"""The fault that needs libfaketime."""
FAILOVER: Final = "redis failover"
"""The fault that needs Sentinels. No other fault of Redis is injected in its fleet."""
OFTEN: Final = 4
"""Every so many seeds have a fleet with Sentinels."""
GROW: Final = signal.SIGRTMIN
"""The signal that makes a worker of the fleet use up its memory."""
FILL: Final = signal.SIGRTMIN + 1
"""The signal that makes a worker fill Python's free lists of tuples."""
MEMORY_LIMIT: Final = 400
"""MiB that a worker may use: more than it ever does without that signal."""
FIRST: Final = 2.0
"""Seconds of load before the first fault."""
CALM: Final = 4.0
"""Seconds without a fault at the end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: when it begins (s after the load), how long it lasts, and a number that chooses its target."""

    kind: Kind
    at: float
    seconds: float
    target: int


def kinds_of(seed: int, kinds: Sequence[Kind]) -> list[Kind]:
    """Returns the kinds of faults of a seed: those of a fleet with Sentinels, or those of one with a single Redis."""
    single = [kind for kind in kinds if kind != FAILOVER]
    shared = [kind for kind in single if not kind.startswith("redis ")]
    has_sentinels = FAILOVER in kinds and (seed % OFTEN == 0 or single == shared)
    return [*shared, FAILOVER] if has_sentinels else single


def made(seed: int, seconds: float, kinds: Sequence[Kind] = KINDS) -> list[Fault]:
    """Makes the plan of a seed: one fault after another. A kind comes again once all others have come."""
    source = random.Random(seed)
    plan: list[Fault] = []
    at = FIRST
    left: list[Kind] = []
    while True:
        if not left:
            left = source.sample(kinds, len(kinds))
        lasts, pause = source.uniform(0.5, 2.5), source.uniform(1.0, 2.5)
        if at + lasts > seconds - CALM:
            return plan
        plan.append(Fault(left.pop(), round(at, 2), round(lasts, 2), source.randrange(1000)))
        at += lasts + pause


def minimized(plan: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> list[Fault]:
    """Returns a plan that still fails, and does not without any one of its parts (delta debugging, `ddmin`).

    A. Zeller, R. Hildebrandt: Simplifying and Isolating Failure-Inducing Input, 2002.
    """
    kept, parts = list(plan), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if rest and fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(2 * parts, len(kept))
    return kept


def as_json(plan: Sequence[Fault]) -> list[dict[str, Any]]:
    """The plan for a file."""
    return [asdict(fault) for fault in plan]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Fault]:
    """The plan of a file."""
    return [Fault(**row) for row in rows]
