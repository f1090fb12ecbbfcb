"""The rules, as pure functions: who gets a permit, who waits, who goes next. `lua/bulkhead_*.lua` is the same in Redis.

Users go before background work. Among equals tenants take turns, and within a tenant the oldest goes first. A full
line takes one more only in the place of somebody with less claim to it: background work makes room for users, and
the tenant with the longest line for those with shorter ones, so that no tenant can fill the line for all others.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from api.bulkhead.state import Verdict
from api.bulkhead.ticket import Priority, place

SMOOTHING: Final = 0.1
"""The weight of the newest call in the mean service time."""


@dataclass(frozen=True, slots=True)
class Line:
    """Who holds a permit and who waits (sorted). `turns`: by priority, the tenant that was served last."""

    held: frozenset[str] = frozenset()
    queue: tuple[str, ...] = ()
    turns: Mapping[Priority, str] = field(default_factory=dict)
    service_ms: float = 0.0


def take(line: Line, limit: int, max_queue: int, ticket: str, reserve: int = 0) -> tuple[Line, Verdict, str | None]:
    """Asks for a permit. Also gives the ticket that lost its place in line for it, if one did."""
    priority, _ = place(ticket)
    if not _anybody_before(line, priority) and _is_free(line, limit, reserve, priority):
        return replace(line, held=line.held | {ticket}), Verdict.GRANTED, None
    victim = None
    if len(line.queue) >= max_queue:
        victim = displaced(line.queue, ticket)
        if victim is None:
            return line, Verdict.REJECTED, None
    queue = [waiting for waiting in line.queue if waiting != victim]
    insort(queue, ticket)
    return replace(line, queue=tuple(queue)), Verdict.QUEUED, victim


def _anybody_before(line: Line, priority: Priority) -> bool:
    """Whether one who comes now has somebody in line before it: behind a free permit only background work waits."""
    return any(priority is Priority.BACKGROUND or place(waiting)[0] is Priority.USER for waiting in line.queue)


def _is_free(line: Line, limit: int, reserve: int, priority: Priority) -> bool:
    """Whether there is a permit for a call of this priority: `reserve` of them are for users alone."""
    if len(line.held) >= limit:
        return False
    behind = sum(place(ticket)[0] is Priority.BACKGROUND for ticket in line.held)
    return priority is Priority.USER or behind < limit - reserve


def displaced(queue: Sequence[str], ticket: str) -> str | None:
    """Whose place in a full line `ticket` may take: the newest of the tenant that has the most; None for nobody's."""
    lines: dict[tuple[Priority, str], list[str]] = {}
    for waiting in queue:
        lines.setdefault(place(waiting), []).append(waiting)
    priority, _ = own = place(ticket)
    background = [line for (kind, _), line in lines.items() if kind is Priority.BACKGROUND]
    if priority is Priority.USER and background:
        return max(background, key=len)[-1]
    longest = max((line for (kind, _), line in lines.items() if kind is priority), key=len, default=[])
    return longest[-1] if len(longest) > len(lines.get(own, ())) + 1 else None


def give(line: Line, limit: int, ticket: str, held_ms: int, reserve: int = 0) -> tuple[Line, tuple[str, ...]]:
    """A permit or a place in line goes back. Also gives the tickets that hold a permit from now on."""
    service = line.service_ms
    if held_ms >= 0:
        service = service + (held_ms - service) * SMOOTHING if service else float(held_ms)
    queue = tuple(waiting for waiting in line.queue if waiting != ticket)
    return hand_out(replace(line, held=line.held - {ticket}, queue=queue, service_ms=service), limit, reserve)


def hand_out(line: Line, limit: int, reserve: int = 0) -> tuple[Line, tuple[str, ...]]:
    """Free permits go to those who wait, in turn."""
    granted: list[str] = []
    while line.queue:
        ticket = following(line)
        kind, tenant = place(ticket)
        if not _is_free(line, limit, reserve, kind):
            break
        line = replace(
            line,
            held=line.held | {ticket},
            queue=tuple(waiting for waiting in line.queue if waiting != ticket),
            turns={**line.turns, kind: tenant},
        )
        granted.append(ticket)
    return line, tuple(granted)


def following(line: Line) -> str:
    """Who goes next in a line that is not empty."""
    for priority in Priority:
        waiting = [ticket for ticket in line.queue if place(ticket)[0] is priority]
        # "!" follows the blank, and no ticket's tenant holds either: past all tickets of the tenant served last.
        after = f"{priority} {line.turns[priority]}!" if priority in line.turns else ""
        later = [ticket for ticket in waiting if ticket >= after]
        if waiting:
            return (later or waiting)[0]
    raise ValueError("nobody waits")


def retry_after(service_ms: float, waiting: int, limit: int) -> float:
    """Seconds until one who comes now might be served: those before it and itself, `limit` at a time."""
    return service_ms * (waiting + 1) / limit / 1000
