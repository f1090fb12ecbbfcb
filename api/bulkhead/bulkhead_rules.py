"""The bulkhead's rules as pure functions: which call gets a permit, which queues, and which is next.

The scripts in `redis_store/stores/bulkhead.lua` apply the same rules in Redis.

Users go before batch calls, and those before background work. Among equals tenants take turns, and within a tenant the
oldest goes first. A full queue accepts another call only in place of one with a weaker claim: weaker priorities give
way to stronger ones, and the tenant with the most queued calls to tenants with fewer. So no tenant can fill the queue
for all others. A batch call that has waited for long goes before users, but only one in that time, one at once, and for
a quarter of the backend's time (`BatchShare`). A tenant that holds its share of the permits is passed over.

A ticket names a call from its request until its permit is returned. Its bytes are its place in the queue: `user acme
1795441663212000 vm-16499-f46f 9f3c1a7be2d04c55` has priority, tenant (percent-encoded, without spaces), the time of the
request (microseconds since 1970 by Redis's clock), worker, and hex digits that make it unique. Sorted as bytes, the
tickets of one tenant are adjacent, oldest first, so that the next tenant in turn is one range query away.

A worker without Redis applies the same rules to its share of the permits (`LocalBulkhead`).
"""

from __future__ import annotations

import math
import secrets
import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, unquote

from api.bulkhead import bulkhead_rules as rules
from api.ports.telemetry import BulkheadReason
from api.values import Priority

NO_QUEUE: Final = -1
"""The `max_queue` of a call that does not queue."""
NOBODY: Final = "-"
"""The tenant of calls that belong to no tenant."""


@lru_cache(1024)
def tenant_field(tenant: str) -> str:
    """A tenant's name as encoded in a ticket."""
    return quote(tenant, safe="", errors="replace") or NOBODY


def new_id() -> str:
    """The random end of a ticket."""
    return secrets.token_hex(8)


def local_ticket(priority: Priority, tenant: str, worker: str) -> str:
    """A ticket by this worker's own clock, for use without Redis."""
    return f"{priority} {tenant_field(tenant)} {time.time_ns() // 1000} {worker} {new_id()}"


def place(ticket: str) -> tuple[Priority, str]:
    """Priority and (encoded) tenant, which take turns."""
    priority, tenant, _ = ticket.split(" ", 2)
    return Priority(priority), tenant


def tenant_of(ticket: str) -> str:
    """The tenant's name, also in a ticket with a priority of a later release."""
    return unquote(ticket.split(" ", 2)[1])


def asked_us(ticket: str) -> int:
    """When the call asked for a permit."""
    return int(ticket.split(" ", 3)[2])


def promoted(ticket: str) -> str:
    """The ticket with a user's priority. Among users it keeps the time at which it was asked for."""
    return f"{Priority.USER} {ticket.partition(' ')[2]}"


@dataclass(frozen=True, slots=True)
class BulkheadPolicy:
    """The limits of one bulkhead for the fleet. Durations in seconds, `lease_ms` in milliseconds.

    `reserve`: how many of the `limit` permits only users take, so that a user finds one free. `batch_after`: a batch
    call that has waited this long goes before users, one in this time; 0: none. `tenant_share`: the part of the permits
    that the calls of one tenant may hold.
    """

    limit: int = 4
    max_queue: int = 64
    max_wait: float = 30.0
    lease_ms: int = 10_000
    reserve: int = 0
    batch_after: float = 0.0
    tenant_share: float = 1.0


def most_permits(limit: int, tenant_share: float) -> int:
    """The permits that the calls of one tenant may hold: its share, rounded down, and at least one."""
    return max(1, math.floor(limit * tenant_share + 1e-9))


class AcquireResult(IntEnum):
    """The result of asking for a permit."""

    REJECTED = 0
    GRANTED = 1
    QUEUED = 2


@dataclass(frozen=True, slots=True)
class Taken:
    """The reply to a request. `ticket` is empty if rejected; `retry_after`: seconds that the queue takes.

    `by_share`: a permit was free, but the tenant holds its share.
    """

    verdict: AcquireResult
    ticket: str
    retry_after: float = 0.0
    by_share: bool = False


@dataclass(frozen=True, slots=True)
class PermitReturn:
    """A returned ticket, of a permit or a place in the queue. `held_ms` is -1 if no call was made."""

    ticket: str
    held_ms: int = -1
    reason: BulkheadReason | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """A message to the ticket's worker: it has a permit, or will get none (`reason`)."""

    ticket: str
    reason: BulkheadReason | None = None


@dataclass(frozen=True, slots=True)
class RenewedLeases:
    """The result of a renewal: the tickets that get a permit, and the positions of the worker's queued tickets.

    `service_ms`: the fleet's mean time of a call; 0 if unknown.
    """

    granted: Sequence[str] = ()
    positions: Mapping[str, int] = field(default_factory=dict)
    service_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BulkheadReading:
    """The bulkhead at one moment. `stats`: counts by name, and `service_ms`."""

    in_use: int
    queue: tuple[str, ...]
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting_by_tenant(self) -> dict[str, int]:
        """Queued tickets by tenant."""
        return dict(Counter(map(tenant_of, self.queue)))

    @property
    def waiting_by_priority(self) -> dict[str, int]:
        """Queued tickets by priority."""
        return waiting_by_priority(self.queue)


def waiting_by_priority(queue: Iterable[str]) -> dict[str, int]:
    """Counts tickets by priority. Leaves out priorities of a later release."""
    found = Counter(ticket.partition(" ")[0] for ticket in queue)
    return {priority.value: found[priority.value] for priority in Priority}


SMOOTHING: Final = 0.1
"""The weight of the newest call in the mean service time."""


BATCH_PART: Final = 4
"""Batch calls that go before users use one part in four of a backend's permits over time."""


class BatchShare(NamedTuple):
    """The share of batch calls while users wait: one call every `after_us`, if it has waited as long. 0: none.

    `now_us`: the present time.
    """

    now_us: int = 0
    after_us: int = 0


NO_SHARE: Final = BatchShare()
UNSHARED: Final = sys.maxsize
"""A tenant may hold all permits."""


@dataclass(frozen=True, slots=True)
class WaitQueue:
    """Tickets that hold a permit and queued ones (sorted). `turns`: by priority, the tenant served last.

    `batch_us`: when a batch call last got a permit. `batch_next_us`: when one may go before users, after a long one.
    """

    held: frozenset[str] = frozenset()
    queue: tuple[str, ...] = ()
    turns: Mapping[Priority, str] = field(default_factory=dict)
    service_ms: float = 0.0
    batch_us: int = 0
    batch_next_us: int = 0


def take(
    line: WaitQueue,
    limit: int,
    max_queue: int,
    ticket: str,
    reserve: int = 0,
    now_us: int = 0,
    most: int = UNSHARED,
) -> tuple[WaitQueue, AcquireResult, str | None]:
    """Asks for a permit. Also gives the ticket displaced from the queue, if any.

    With a `max_queue` below 0 the call takes only a permit that is free now. `most`: permits that a tenant may hold.
    """
    if (
        is_free(line, limit, reserve, ticket)
        and not _has_share(line, ticket, most)
        and not _is_behind(line, ticket, most)
    ):
        return _granted(line, ticket, now_us), AcquireResult.GRANTED, None
    if max_queue < 0:
        return line, AcquireResult.REJECTED, None
    victim = None
    if len(line.queue) >= max_queue:
        victim = displaced(line.queue, ticket)
        if victim is None:
            return line, AcquireResult.REJECTED, None
    queue = [waiting for waiting in line.queue if waiting != victim]
    insort(queue, ticket)
    return replace(line, queue=tuple(queue)), AcquireResult.QUEUED, victim


def _is_behind(line: WaitQueue, ticket: str, most: int) -> bool:
    """Returns whether a call of the ticket's priority, or of a higher one, is waiting for a permit that it may hold."""
    rank = _ORDER[place(ticket)[0]]
    return any(_next_of(line, priority, most) is not None for priority in Priority if _ORDER[priority] <= rank)


def _has_share(line: WaitQueue, ticket: str, most: int) -> bool:
    """Returns whether the ticket's tenant holds as many permits as it may."""
    tenant = place(ticket)[1]
    return sum(place(held)[1] == tenant for held in line.held) >= most


_ORDER: Final = {priority: rank for rank, priority in enumerate(Priority)}


def ahead(queue: Iterable[str], priority: Priority) -> int:
    """The queued tickets of this priority and of higher ones."""
    return sum(_ORDER[place(waiting)[0]] <= _ORDER[priority] for waiting in queue)


def _granted(line: WaitQueue, ticket: str, now_us: int) -> WaitQueue:
    is_batch = place(ticket)[0] is Priority.BATCH
    return replace(line, held=line.held | {ticket}, batch_us=now_us if is_batch else line.batch_us)


def is_free(line: WaitQueue, limit: int, reserve: int, ticket: str) -> bool:
    """Returns whether there is a permit for the ticket's priority: `reserve` of them are for users only."""
    if len(line.held) >= limit:
        return False
    priority = place(ticket)[0]
    behind = sum(place(ticket)[0] is not Priority.USER for ticket in line.held)
    return priority is Priority.USER or behind < limit - reserve


def displaced(queue: Sequence[str], ticket: str) -> str | None:
    """The ticket that `ticket` may displace in a full queue: the newest of the tenant with most; None if none.

    The weakest priority gives way first.
    """
    lines: dict[tuple[Priority, str], list[str]] = {}
    for waiting in queue:
        lines.setdefault(place(waiting), []).append(waiting)
    priority, _ = own = place(ticket)
    weakest = max((kind for kind, _ in lines), key=_ORDER.__getitem__, default=priority)
    if _ORDER[weakest] > _ORDER[priority]:
        return max((line for (kind, _), line in lines.items() if kind is weakest), key=len)[-1]
    longest = max((line for (kind, _), line in lines.items() if kind is priority), key=len, default=[])
    return longest[-1] if len(longest) > len(lines.get(own, ())) + 1 else None


def give(
    line: WaitQueue,
    limit: int,
    ticket: str,
    held_ms: int,
    reserve: int = 0,
    share: BatchShare = NO_SHARE,
    most: int = UNSHARED,
) -> tuple[WaitQueue, tuple[str, ...]]:
    """Returns a permit or a place in the queue. Also gives the tickets that get a permit now."""
    service = line.service_ms
    if held_ms >= 0:
        service = service + (held_ms - service) * SMOOTHING if service else float(held_ms)
    queue = tuple(waiting for waiting in line.queue if waiting != ticket)
    line = replace(line, held=line.held - {ticket}, queue=queue, service_ms=service)
    if held_ms >= 0 and share.after_us and place(ticket)[0] is Priority.BATCH:
        pause_us = held_ms * 1000 * BATCH_PART // limit - held_ms * 1000
        line = replace(line, batch_next_us=max(line.batch_next_us, share.now_us + pause_us))
    return hand_out(line, limit, reserve, share, most)


def hand_out(
    line: WaitQueue, limit: int, reserve: int = 0, share: BatchShare = NO_SHARE, most: int = UNSHARED
) -> tuple[WaitQueue, tuple[str, ...]]:
    """Gives free permits to queued tickets, in turn."""
    granted: list[str] = []
    while (ticket := overdue(line, limit, reserve, share, most) or following(line, most)) is not None:
        if not is_free(line, limit, reserve, ticket):
            break
        kind, tenant = place(ticket)
        line = replace(
            _granted(line, ticket, share.now_us),
            queue=tuple(waiting for waiting in line.queue if waiting != ticket),
            turns={**line.turns, kind: tenant},
        )
        granted.append(ticket)
    return line, tuple(granted)


def following(line: WaitQueue, most: int = UNSHARED) -> str | None:
    """The next ticket, if the tenant of any may hold one more permit."""
    return next(filter(None, (_next_of(line, priority, most) for priority in Priority)), None)


def _next_of(line: WaitQueue, priority: Priority, most: int) -> str | None:
    held = Counter(place(ticket)[1] for ticket in line.held)
    waiting = [one for one in line.queue if place(one)[0] is priority and held[place(one)[1]] < most]
    # "!" sorts after the space, and no tenant contains either: after all tickets of the tenant served last.
    after = f"{priority} {line.turns[priority]}!" if priority in line.turns else ""
    later = [ticket for ticket in waiting if ticket >= after]
    return next(iter(later or waiting), None)


def overdue(line: WaitQueue, limit: int, reserve: int, share: BatchShare, most: int) -> str | None:
    """The batch ticket that goes before users now, if any."""
    due_us = share.now_us - share.after_us
    if not share.after_us or line.batch_us > due_us or line.batch_next_us > share.now_us:
        return None
    is_running = any(place(ticket)[0] is Priority.BATCH for ticket in line.held)
    ticket = None if is_running else _next_of(line, Priority.BATCH, most)
    if ticket is None or asked_us(ticket) > due_us or not is_free(line, limit, reserve, ticket):
        return None
    return ticket


def positions(line: WaitQueue) -> dict[str, int]:
    """The queued tickets in the order in which they get permits, from 1. The shares are left out."""
    order: list[str] = []
    for priority in Priority:
        by_tenant: dict[str, list[str]] = {}
        for ticket in line.queue:
            if place(ticket)[0] is priority:
                by_tenant.setdefault(place(ticket)[1], []).append(ticket)
        after = f"{priority} {line.turns[priority]}!" if priority in line.turns else ""
        later = [tickets for tickets in by_tenant.values() if tickets[0] >= after]
        turns = later + [tickets for tickets in by_tenant.values() if tickets[0] < after]
        for number in range(max(map(len, turns), default=0)):
            turns = [tickets for tickets in turns if len(tickets) > number]
            order += [tickets[number] for tickets in turns]
    return {ticket: number for number, ticket in enumerate(order, start=1)}


def retry_after(service_ms: float, waiting: int, limit: int) -> float:
    """Estimated seconds until a new call is served: those before it and itself, `limit` at a time."""
    return service_ms * (waiting + 1) / limit / 1000


def estimated_seconds(service_ms: float, position: int, limit: int) -> float | None:
    """Estimated seconds until the call at this position gets a permit. None if no call has been measured."""
    return round(service_ms * position / limit / 1000, 1) if service_ms else None


class BulkheadStore(Protocol):
    """One bulkhead in Redis. Each call is one atomic step by Redis's clock."""

    async def take(self, priority: Priority, tenant: str, *, queues: bool = True) -> Taken:
        """Gives a permit, a place in the queue, or neither. Never a place if the call does not queue."""

    async def give(self, returns: Sequence[PermitReturn]) -> list[str]:
        """Returns permits and places in the queue. Gives the tickets, of any worker, that get a permit now."""

    async def renew_leases(self, held: Iterable[str], waiting: Iterable[str]) -> RenewedLeases:
        """Renews the leases of a worker's tickets and reassigns expired ones."""

    async def read(self) -> BulkheadReading:
        """The bulkhead's state at one moment."""

    def follow(self) -> AsyncIterator[Wake | None]:
        """Events of this worker's queued tickets; None after each (re)connect. Ends by raising."""


class LocalBulkhead:
    """Starts with the permits that this worker holds and its queued tickets."""

    def __init__(
        self, policy: BulkheadPolicy, workers: int, worker: str, held: Iterable[str], waiting: Iterable[str]
    ) -> None:
        self._limit = max(1, policy.limit // max(1, workers))
        self._reserve = min(policy.reserve, self._limit - 1)
        self._most = most_permits(self._limit, policy.tenant_share)
        self._batch_after_us = round(policy.batch_after * 1e6)
        self._max_queue = max(min(1, policy.max_queue), policy.max_queue // max(1, workers))
        self._worker = worker
        self._line = WaitQueue(frozenset(held), tuple(sorted(waiting)))

    @property
    def limit(self) -> int:
        """This worker's share of the permits, at least 1."""
        return self._limit

    def take(self, priority: Priority, tenant: str, *, queues: bool = True) -> tuple[Taken, str | None]:
        """Applies the rules as Redis would; also gives the ticket that lost its place."""
        ticket = local_ticket(priority, tenant, self._worker)
        max_queue = self._max_queue if queues else NO_QUEUE
        before = rules.ahead(self._line.queue, priority)
        free = rules.is_free(self._line, self._limit, self._reserve, ticket)
        self._line, verdict, victim = rules.take(
            self._line, self._limit, max_queue, ticket, self._reserve, asked_us(ticket), self._most
        )
        retry_after = rules.retry_after(self._line.service_ms, before, self._limit)
        by_share = free and verdict is not AcquireResult.GRANTED
        return Taken(verdict, "" if verdict is AcquireResult.REJECTED else ticket, retry_after, by_share), victim

    def hold(self, ticket: str) -> None:
        """Records a permit that Redis granted after all."""
        queue = tuple(waiting for waiting in self._line.queue if waiting != ticket)
        self._line = replace(self._line, held=self._line.held | {ticket}, queue=queue)

    def join(self, ticket: str) -> tuple[str, ...]:
        """Queues a ticket that waits in Redis. Gives the tickets that get a permit now."""
        self._line = replace(self._line, queue=tuple(sorted({*self._line.queue, ticket})))
        return self.hand_out()

    def give(self, ticket: str, held_ms: int) -> tuple[str, ...]:
        """Returns a ticket. Gives the tickets that get a permit now."""
        self._line, granted = rules.give(
            self._line, self._limit, ticket, held_ms, self._reserve, self._share(), self._most
        )
        return granted

    def hand_out(self) -> tuple[str, ...]:
        """Gives the tickets that get a permit now."""
        self._line, granted = rules.hand_out(self._line, self._limit, self._reserve, self._share(), self._most)
        return granted

    def _share(self) -> BatchShare:
        return BatchShare(time.time_ns() // 1000, self._batch_after_us)

    def renewed(self) -> RenewedLeases:
        """Gives the tickets that get a permit now, and the positions of the others."""
        return RenewedLeases(self.hand_out(), rules.positions(self._line), self._line.service_ms)

    def read(self) -> BulkheadReading:
        """The state as this worker knows it."""
        return BulkheadReading(len(self._line.held), self._line.queue, {"service_ms": self._line.service_ms})
