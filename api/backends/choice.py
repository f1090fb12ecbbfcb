"""Chooses the backends for a call: which ones may take it, and in which order they are tried.

A drained backend gets no calls. Tiers and weights come from OLLAMA_BASE_URL. Health only orders the backends: whether
one may be called is up to its breaker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from api.errors import BackendsDrained
from api.ports.coordination import Breaker, Bulkhead
from api.values import BackendHealth, model_key


@dataclass(frozen=True, slots=True)
class BackendState:
    """The state of one backend. None: unknown (not probed yet), which does not count against it.

    `rejects`: its breaker admits no call. `outstanding`: this worker's calls to it that have not ended.
    """

    name: str
    rejects: bool = False
    reachable: bool | None = None
    has_model: bool | None = None
    resident: bool | None = None
    outstanding: int = 0
    tier: int = 1
    weight: int = 1


def in_order(candidates: Sequence[BackendState], turn: int) -> list[str]:
    """Returns the names, best first.

    One whose breaker rejects comes after all others, then one that did not answer, then one of a higher tier, then one
    without the model in memory, then the one that is busier for its weight. Equals take turns, by weight. One without
    the model is left out, unless all are.
    """
    holders = [candidate for candidate in candidates if candidate.has_model is not False] or list(candidates)
    return [candidate.name for candidate in sorted(_taking_turns(holders, turn), key=_reasons_against)]


def _taking_turns(holders: Sequence[BackendState], turn: int) -> list[BackendState]:
    """One with weight 2 comes first twice as often as one with weight 1."""
    rounds = range(max((holder.weight for holder in holders), default=0))
    turns = [holder for number in rounds for holder in holders if holder.weight > number]
    shift = turn % len(turns) if turns else 0
    return list(dict.fromkeys(turns[shift:] + turns[:shift]))


def _reasons_against(candidate: BackendState) -> tuple[bool, bool, int, bool, float]:
    return (
        candidate.rejects,
        candidate.reachable is False,
        candidate.tier,
        candidate.resident is False,
        candidate.outstanding / candidate.weight,
    )


class Drainable(Protocol):
    """Knows whether an admin has drained a backend."""

    drained: bool


@dataclass(slots=True)
class InUse:
    """A backend that is not drained."""

    drained: bool = False


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Backend(Generic[T]):
    """One Ollama for one kind of call. `outstanding`: this worker's calls that have not ended.

    The lowest `tier` is used first. `weight` is a share of the tier's calls. `drain` is the same for all kinds of
    calls.
    """

    name: str
    service: T
    bulkhead: Bulkhead
    breaker: Breaker
    outstanding: int = 0
    tier: int = 1
    weight: int = 1
    drain: Drainable = field(default_factory=InUse)


class Backends(Generic[T]):
    """The backends for one kind of call.

    `health` returns a backend's last probe, None if it is unknown. `had` returns whether a backend had a model (by
    `model_key`) when it last answered.
    """

    def __init__(
        self,
        members: Sequence[Backend[T]],
        health: Callable[[str], BackendHealth | None],
        had: Callable[[str, str], bool] = lambda _backend, _model: False,
    ) -> None:
        self._members = {member.name: member for member in members}
        self._health = health
        self._had = had
        self._turns = count()
        self.has_tiers = len({member.tier for member in members}) > 1

    def candidates(self, model: str, *, even_drained: bool = False) -> list[Backend[T]]:
        """Returns the backends that may have `model`, best first; never empty.

        If all are drained, returns them with `even_drained`, else raises `BackendsDrained`.
        """
        members = [member for member in self._members.values() if not member.drain.drained]
        if not members:
            if not even_drained:
                raise BackendsDrained(next(iter(self._members)))
            members = list(self._members.values())
        if len(members) == 1:
            return members
        key = model_key(model)
        candidates = [self._candidate(member, key) for member in members]
        return [self._members[name] for name in in_order(candidates, next(self._turns))]

    @property
    def drained(self) -> list[str]:
        """The names of the drained backends."""
        return [member.name for member in self._members.values() if member.drain.drained]

    def others(self, tried: Collection[str]) -> list[Backend[T]]:
        """Returns the backends that were not tried, such as those that lacked the model at their last probe."""
        members = self._members.values()
        return [member for member in members if member.name not in tried and not member.drain.drained]

    def had(self, backend: str, model: str) -> bool:
        """Returns whether a backend had a model when it last answered."""
        return self._had(backend, model_key(model))

    def _candidate(self, member: Backend[T], key: str) -> BackendState:
        health = self._health(member.name)
        answers = health is not None and health.reachable
        return BackendState(
            member.name,
            rejects=member.breaker.rejects,
            reachable=None if health is None else health.reachable,
            has_model=key in health.models if health is not None and answers else None,
            resident=key in health.resident if health is not None and answers else None,
            outstanding=member.outstanding,
            tier=member.tier,
            weight=member.weight,
        )
