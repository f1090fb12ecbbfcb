"""Which backend first: a pure decision on what a worker knows of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as it stands. None: not known (not probed yet), which is no reason against it.

    `rejects`: its breaker admits no call. `outstanding`: this worker's calls to it that have not ended.
    """

    name: str
    rejects: bool = False
    reachable: bool | None = None
    has_model: bool | None = None
    resident: bool | None = None
    outstanding: int = 0


def in_order(candidates: Sequence[Candidate], turn: int) -> list[str]:
    """The names, best first.

    One whose breaker rejects comes after all others, then one that did not answer, then one without the model in
    memory, then the busier one. Among equals they take turns. One without the model is left out, unless all are.
    """
    holders = [candidate for candidate in candidates if candidate.has_model is not False] or list(candidates)
    shift = turn % len(holders) if holders else 0
    taking_turns = holders[shift:] + holders[:shift]
    return [candidate.name for candidate in sorted(taking_turns, key=_reasons_against)]


def _reasons_against(candidate: Candidate) -> tuple[bool, bool, bool, int]:
    return (
        candidate.rejects,
        candidate.reachable is False,
        candidate.resident is False,
        candidate.outstanding,
    )
