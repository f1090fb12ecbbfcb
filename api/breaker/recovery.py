"""How well a breaker's backend recovers, from the history of its transitions. Pure."""

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
    """From leaving CLOSED until back. `ended_ms` is None while it lasts; `probes` as admitted by all its HALF_OPENs."""

    began_ms: int
    ended_ms: int | None
    probes: int
    reason: str

    def lasted_ms(self, now_ms: int) -> int:
        """So far, while it lasts."""
        return (self.ended_ms if self.ended_ms is not None else now_ms) - self.began_ms


@dataclass(frozen=True, slots=True)
class Recovery:
    """Figures over the last 24 hours, as far as the history reaches. Availability is a fraction of time."""

    outages: tuple[Outage, ...]
    outages_per_hour: float
    mean_seconds: float | None
    longest_seconds: float | None
    mean_probes: float | None
    availability_1h: float
    availability_24h: float


def recovery(transitions: Sequence[Transition], now_ms: int) -> Recovery:
    """`transitions` oldest first, of one clock with `now_ms`. Only ended outages count in means."""
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
    """The share of the last `span_ms` in which calls were not rejected."""
    start = now_ms - span_ms
    lost = sum(max(0, (o.ended_ms or now_ms) - max(o.began_ms, start)) for o in outages)
    return 1 - lost / span_ms
