"""Statistics of a backend's outages and recovery from its breaker's transitions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from api.breaker.state import State, Transition

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Outage:
    """The time from leaving CLOSED until it returns.

    `ended_ms` is None for a current outage; `probes`: calls that all its HALF_OPENs admitted.
    """

    began_ms: int
    ended_ms: int | None
    probes: int
    reason: str

    def lasted_ms(self, now_ms: int) -> int:
        """Its duration; so far, for a current one."""
        return (self.ended_ms if self.ended_ms is not None else now_ms) - self.began_ms


@dataclass(frozen=True, slots=True)
class Recovery:
    """Statistics over the last 24 hours, as far as the history goes back. Availability is a fraction of time."""

    outages: tuple[Outage, ...]
    outages_per_hour: float
    mean_seconds: float | None
    longest_seconds: float | None
    mean_probes: float | None
    availability_1h: float
    availability_24h: float


def recovery(transitions: Sequence[Transition], now_ms: int) -> Recovery:
    """`transitions`: oldest first, by the same clock as `now_ms`. Means include ended outages only."""
    outages = _outages(transitions)
    recent = tuple(outage for outage in outages if (outage.ended_ms or now_ms) > now_ms - DAY_MS)
    ended = [outage for outage in recent if outage.ended_ms is not None]
    lengths = [outage.lasted_ms(now_ms) / 1000 for outage in ended]
    return Recovery(
        outages=recent,
        outages_per_hour=sum(outage.began_ms > now_ms - DAY_MS for outage in recent) / 24,
        mean_seconds=fmean(lengths) if lengths else None,
        longest_seconds=max(lengths, default=None),
        mean_probes=fmean(outage.probes for outage in ended) if ended else None,
        availability_1h=_availability(recent, now_ms, HOUR_MS),
        availability_24h=_availability(recent, now_ms, DAY_MS),
    )


def _outages(transitions: Sequence[Transition]) -> list[Outage]:
    found: list[Outage] = []
    began: Transition | None = None
    probes = 0
    for transition in transitions:
        if began is None and transition.to_state is not State.CLOSED:
            began, probes = transition, 0
        elif began is not None:
            probes += transition.probes
            if transition.to_state is State.CLOSED:
                found.append(Outage(began.at_ms, transition.at_ms, probes, began.reason))
                began = None
    if began is not None:
        found.append(Outage(began.at_ms, None, probes, began.reason))
    return found


def _availability(outages: Sequence[Outage], now_ms: int, span_ms: int) -> float:
    """The share of the last `span_ms` without rejected calls."""
    start = now_ms - span_ms
    lost = sum(max(0, (o.ended_ms or now_ms) - max(o.began_ms, start)) for o in outages)
    return 1 - lost / span_ms
