"""How well a breaker's backend recovers, told by the history of its transitions. Pure.

Outcomes on their way to the store, in order: failures at once, successes and rejections a moment later, together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Final

from api.breaker.state import CallOutcome, State, Transition
from api.cancellation import let_go

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


COALESCE_SECONDS = 0.25

Send = Callable[[int, str, list[CallOutcome], int], Awaitable[None]]


class OutcomeReports:
    """Collects the outcomes of one worker. A first success goes out at once, those right behind it together."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._outcomes: list[tuple[int, CallOutcome]] = []
        self._rejected = 0
        self._sending = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None

    async def add(self, epoch: int, outcome: CallOutcome, *, at_once: bool) -> None:
        """Queues an outcome of a call admitted in `epoch`; with `at_once` it is sent when this returns."""
        self._outcomes.append((epoch, outcome))
        if at_once:
            await self.flush()
        else:
            self._flush_soon()

    def rejected(self) -> None:
        """Counts a call that was not admitted."""
        self._rejected += 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_while_busy())
            let_go(self._timer)

    async def _flush_while_busy(self) -> None:
        while self._outcomes or self._rejected:
            await self.flush()
            await asyncio.sleep(COALESCE_SECONDS)

    async def flush(self) -> None:
        """Sends all that is waiting, after what is already on its way. A caller's cancellation loses nothing."""
        if self._outcomes or self._rejected or self._sending.locked():
            task = asyncio.create_task(self._flush())
            let_go(task, Exception)  # raised here, unless the caller leaves
            await asyncio.shield(task)

    async def _flush(self) -> None:
        async with self._sending:
            outcomes, self._outcomes = self._outcomes, []
            rejected, self._rejected = self._rejected, 0
            for epoch, group in groupby(outcomes, key=itemgetter(0)):
                await self._send(epoch, "", [outcome for _, outcome in group], rejected)
                rejected = 0
            if rejected:
                await self._send(0, "", [], rejected)

    async def aclose(self) -> None:
        """Sends the rest and stops."""
        if self._timer is not None:
            self._timer.cancel()
        await self.flush()
