"""The bulkhead in Redis: permits and the queue for them.

One script per step, by Redis's clock; messages wake waiters.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any

from redis.commands.core import AsyncScript

from api.bulkhead.bulkhead_rules import (
    NO_QUEUE,
    AcquireResult,
    BulkheadPolicy,
    BulkheadReading,
    PermitReturn,
    RenewedLeases,
    Taken,
    Wake,
    most_permits,
    tenant_field,
)
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import Reader, messages, script
from api.values import Priority


class RedisBulkheadStore:
    """One bulkhead that the fleet shares. Every method raises `StoreUnavailable`.

    `reader` opens a separate client for messages.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        reader: Reader,
        keys: Keys,
        name: str,
        policy: BulkheadPolicy,
        worker: str,
    ) -> None:
        self._keys = keys.bulkhead(name)
        self._redis = redis.of(self._keys[0])
        self._reader = reader
        self._worker = worker
        self._max_queue = policy.max_queue
        channel = keys.bulkhead_channel(name, "")
        self._channel = channel + worker
        most = most_permits(policy.limit, policy.tenant_share)
        limits = f"{policy.limit} {policy.reserve} {round(policy.batch_after * 1000)} {most}"
        self._common = (limits, policy.lease_ms, channel)
        self._take = self._script("take")
        self._give = self._script("give")
        self._renew = self._script("renew")
        self._read = self._script("read")

    def _script(self, operation: str) -> AsyncScript:
        return script(self._redis.client, "stores/bulkhead", operation)

    async def _run(self, called: AsyncScript, *arguments: Any) -> Any:
        return await self._redis.run("bulkhead", partial(called, self._keys, (*self._common, *arguments)))

    async def take(self, priority: Priority, tenant: str, *, queues: bool = True) -> Taken:
        """Asks for a permit. Returns whether it was granted, queued or rejected, and the ticket."""
        max_queue = self._max_queue if queues else NO_QUEUE
        verdict, ticket, retry_after_ms, by_share = await self._run(
            self._take, priority, tenant_field(tenant), self._worker, secrets.token_hex(8), max_queue
        )
        return Taken(AcquireResult(verdict), ticket.decode(), int(retry_after_ms) / 1000, bool(by_share))

    async def give(self, returns: Sequence[PermitReturn]) -> list[str]:
        """Returns permits and places in the queue. Returns the tickets that now have a permit."""
        items = (field for item in returns for field in (item.ticket, item.held_ms, item.reason or ""))
        return _texts(await self._run(self._give, *items))

    async def renew_leases(self, held: Iterable[str], waiting: Iterable[str]) -> RenewedLeases:
        """Renews this worker's tickets: those with a permit, and those in the queue."""
        own, queued = list(held), list(waiting)
        granted, service_ms, places = await self._run(self._renew, len(own), *own, *queued)
        positions = {ticket: number for ticket, number in zip(queued, places, strict=True) if number}
        return RenewedLeases(_texts(granted), positions, service_ms)

    async def read(self) -> BulkheadReading:
        """Reads the permits in use, the queue and the statistics at one moment."""
        in_use, length, *rest = await self._run(self._read)
        queue, pairs = _texts(rest[:length]), _texts(rest[length:])
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        stats = {name: number for name, value in fields.items() if (number := _number(value)) is not None}
        return BulkheadReading(in_use, tuple(queue), stats)

    async def follow(self) -> AsyncIterator[Wake | None]:
        """Yields events of this worker's queued tickets, and None after each (re)connect.

        Raises `StoreUnavailable` when the connection is lost.
        """
        async for text in messages(self._reader, self._channel):
            yield None if text is None else _wake(text)


def _wake(text: str) -> Wake | None:
    """Parses a message. None for a message of a later release: the worker then checks its tickets itself."""
    what, _, ticket = text.partition(" ")
    if what == "granted":
        return Wake(ticket)
    return Wake(ticket, "displaced") if what == "displaced" else None


def _number(text: str) -> float | None:
    """None for text that is not a number: the last tenant served, or a field of a later release."""
    try:
        return float(text)
    except ValueError:
        return None


def _texts(reply: Sequence[bytes]) -> list[str]:
    return [value.decode() for value in reply]
