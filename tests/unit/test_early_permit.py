"""A permit that is asked for before it is certain that the call is made: used once, or returned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from api.bulkhead.bulkhead_rules import AcquireResult, BulkheadPolicy, PermitReturn, Taken
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.errors import BulkheadFull, StoreUnavailable
from api.values import QueuePlace


class Store:
    """Grants `free` permits. Another call queues, or is rejected. Answers when `answers` is set."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.is_lost = False
        self.asked: list[bool] = []
        self.returned: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def take(self, priority: str, tenant: str, *, queues: bool) -> Taken:
        self.asked.append(queues)
        ticket = f"{priority} {tenant} {len(self.asked)} w 0"
        await self.answers.wait()
        if self.is_lost:
            raise StoreUnavailable("no Redis here")
        if self.free:
            self.free -= 1
            return Taken(AcquireResult.GRANTED, ticket, 0.0)
        return Taken(AcquireResult.QUEUED, ticket, 0.0) if queues else Taken(AcquireResult.REJECTED, "", 0.0)

    async def give(self, returns: Sequence[PermitReturn]) -> list[str]:
        self.returned += [f"{one.ticket} {one.held_ms}" for one in returns]
        return []


class Call:
    """A bulkhead on a store, and the place of one call."""

    def __init__(self, free: int = 1, name: str = "ollama") -> None:
        self.store = Store(free)
        self.place = QueuePlace()
        store: Any = self.store
        self.bulkhead = FleetBulkhead(name, BulkheadPolicy(limit=1, max_wait=0.01), store, "w")

    async def made(self) -> int:
        """Makes the call. Returns the permits in use meanwhile."""
        async with self.bulkhead.permit("acme", place=self.place):
            return self.bulkhead.in_use

    async def ended(self) -> list[str]:
        """What was returned in the end: the tickets' numbers."""
        await self.bulkhead.aclose()
        assert self.bulkhead.in_use == 0
        return [ticket.split()[2] for ticket in self.store.returned]


async def test_the_call_takes_over_a_free_permit() -> None:
    call = Call()
    call.bulkhead.ask_early("acme", call.place)
    assert await call.made() == 1
    call.place.withdraw()
    assert (call.store.asked, await call.ended()) == ([False], ["1"]), "returned once"


async def test_a_call_that_is_not_made_returns_it_unused() -> None:
    call = Call()
    call.bulkhead.ask_early("acme", call.place)
    call.place.withdraw()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await call.ended()
    assert call.store.returned == ["user acme 1 w 0 -1"], "held for no call"


async def test_it_is_returned_even_if_redis_answers_later() -> None:
    call = Call()
    call.store.answers.clear()
    call.bulkhead.ask_early("acme", call.place)
    calling = asyncio.create_task(call.made())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    call.store.answers.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (calling.cancelled(), await call.ended()) == (True, ["1"])


async def test_without_a_free_permit_the_call_asks_again_and_queues() -> None:
    call = Call(free=0)
    call.bulkhead.ask_early("acme", call.place)
    with pytest.raises(BulkheadFull) as full:
        await call.made()
    assert full.value.reason == "deadline"
    assert (call.store.asked, await call.ended()) == ([False, True], ["2"])


async def test_nothing_is_asked_early_while_calls_of_the_worker_wait() -> None:
    call, other = Call(free=0), QueuePlace()
    call.bulkhead.policy = BulkheadPolicy(limit=1, max_wait=10.0)
    waiting = asyncio.create_task(call.made())
    while not call.bulkhead.waiting:
        await asyncio.sleep(0)
    call.bulkhead.ask_early("acme", other)
    assert other.early is None
    waiting.cancel()
    await asyncio.wait([waiting])
    await call.ended()


async def test_another_bulkhead_does_not_take_it_over() -> None:
    call, other = Call(), Call(name="other")
    call.bulkhead.ask_early("acme", call.place)
    other.place = call.place
    assert await other.made() == 1
    call.place.withdraw()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (await call.ended(), await other.ended()) == (["1"], ["1"])


async def test_if_redis_is_lost_the_call_takes_a_local_permit() -> None:
    call = Call()
    call.store.is_lost = True
    call.bulkhead.ask_early("acme", call.place)
    assert await call.made() == 1
    assert (call.store.asked, call.bulkhead.store_name) == ([False], "local")
    again = QueuePlace()
    call.bulkhead.ask_early("acme", again)
    assert again.early is None, "there is nobody to ask"
