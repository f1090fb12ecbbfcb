"""The local bulkhead of a worker without Redis: the same rules on its share of permits, never sent to Redis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from api.bulkhead import bulkhead_rules as rules
from api.bulkhead.bulkhead_rules import (
    AcquireResult,
    BulkheadPolicy,
    BulkheadReading,
    Priority,
    Taken,
    WaitQueue,
    local_ticket,
)


class LocalBulkhead:
    """Starts with the permits that this worker holds and its queued tickets."""

    def __init__(
        self, policy: BulkheadPolicy, workers: int, worker: str, held: Iterable[str], waiting: Iterable[str]
    ) -> None:
        self._limit = max(1, policy.limit // max(1, workers))
        self._reserve = min(policy.reserve, self._limit - 1)
        self._max_queue = max(min(1, policy.max_queue), policy.max_queue // max(1, workers))
        self._worker = worker
        self._line = WaitQueue(frozenset(held), tuple(sorted(waiting)))

    @property
    def limit(self) -> int:
        """This worker's share of the permits, at least 1."""
        return self._limit

    def take(self, priority: Priority, tenant: str) -> tuple[Taken, str | None]:
        """Applies the rules as Redis would; also gives the ticket that lost its place."""
        ticket = local_ticket(priority, tenant, self._worker)
        self._line, verdict, victim = rules.take(self._line, self._limit, self._max_queue, ticket, self._reserve)
        retry_after = rules.retry_after(self._line.service_ms, len(self._line.queue), self._limit)
        return Taken(verdict, "" if verdict is AcquireResult.REJECTED else ticket, retry_after), victim

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
        self._line, granted = rules.give(self._line, self._limit, ticket, held_ms, self._reserve)
        return granted

    def hand_out(self) -> tuple[str, ...]:
        """Returns a ticket. Gives the tickets that get a permit now."""
        self._line, granted = rules.hand_out(self._line, self._limit, self._reserve)
        return granted

    def read(self) -> BulkheadReading:
        """The state as this worker knows it."""
        return BulkheadReading(len(self._line.held), self._line.queue, {"service_ms": self._line.service_ms})
