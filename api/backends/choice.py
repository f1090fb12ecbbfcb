"""Which backend first: a pure decision on what a worker knows of each.

The backends of one worker: what is called at each, behind which breaker, and which comes first now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Generic, Protocol, TypeVar

from api.errors import UpstreamError
from api.ports.coordination import Breaker, Bulkhead
from api.values import BackendHealth


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend as it stands. None: not known (not probed yet), which is no reason against it.

    `rejects`: its breaker admits no call. `outstanding`: this worker's calls to it that have not ended.
    """

    name: str
    rejects: bool = False
    reachable: bool | None = None
    has_model: bool | None = None
    resident: bool | None = None
    outstanding: int = 0


def in_order(candidates: Sequence[BackendState], turn: int) -> list[str]:
    """The names, best first.

    One whose breaker rejects comes after all others, then one that did not answer, then one without the model in
    memory, then the busier one. Among equals they take turns. One without the model is left out, unless all are.
    """
    holders = [candidate for candidate in candidates if candidate.has_model is not False] or list(candidates)
    shift = turn % len(holders) if holders else 0
    taking_turns = holders[shift:] + holders[:shift]
    return [candidate.name for candidate in sorted(taking_turns, key=_reasons_against)]


def _reasons_against(candidate: BackendState) -> tuple[bool, bool, bool, int]:
    return (
        candidate.rejects,
        candidate.reachable is False,
        candidate.resident is False,
        candidate.outstanding,
    )


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Backend(Generic[T]):
    """One Ollama for one kind of call. `outstanding`: this worker's calls that have not ended."""

    name: str
    service: T
    bulkhead: Bulkhead
    breaker: Breaker
    outstanding: int = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around one call."""
        self.outstanding += 1
        try:
            yield
        finally:
            self.outstanding -= 1


class BackendEvents(Protocol):
    """Who is told when a call leaves a backend for another."""

    def failed_over(self, backend: str, error: UpstreamError) -> None: ...


class Backends(Generic[T]):
    """`health` gives what the last probe of a backend found, None where that is not known."""

    def __init__(self, members: Sequence[Backend[T]], health: Callable[[str], BackendHealth | None]) -> None:
        self._members = {member.name: member for member in members}
        self._health = health
        self._turns = count()

    def candidates(self, model: str) -> list[Backend[T]]:
        """Those that may have `model`, the best first; never empty."""
        candidates = [self._candidate(member, model) for member in self._members.values()]
        return [self._members[name] for name in in_order(candidates, next(self._turns))]

    def _candidate(self, member: Backend[T], model: str) -> BackendState:
        health = self._health(member.name)
        answers = health is not None and health.reachable
        return BackendState(
            member.name,
            rejects=member.breaker.rejects,
            reachable=None if health is None else health.reachable,
            has_model=health.has(model) if health is not None and answers else None,
            resident=health.has_resident(model) if health is not None and answers else None,
            outstanding=member.outstanding,
        )
