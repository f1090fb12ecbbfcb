"""The Lua scripts and the Python rules of the bulkhead agree on random sequences of events."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from api.bulkhead import bulkhead_rules as rules
from api.bulkhead.bulkhead_rules import (
    AcquireResult,
    BatchShare,
    BulkheadPolicy,
    PermitReturn,
    WaitQueue,
    asked_us,
    local_ticket,
)
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.bulkhead import RedisBulkheadStore
from api.values import Priority
from tests.support.replies import texts

POLICY = BulkheadPolicy(limit=3, max_queue=6, lease_ms=60_000)
RESERVES = [0, 1, 2]
AFTER = [0.0, 0.001, 1000.0]
"""Seconds after which a batch call goes first: never, at nearly every step, and not within the test."""
SHARES = [1.0, 0.7, 0.3]
"""Of three permits: all, two, and one."""
TENANTS = ["a", "a-2", "ä b", "z"]
WEIGHTS = [6, 2, 1, 1]


def no_reader(_: float) -> AbstractAsyncContextManager[Any]:
    raise AssertionError("nobody follows here")


async def store_of(redis: BatchingRedis, policy: BulkheadPolicy) -> RedisBulkheadStore:
    gate = HealthGatedRedis(redis, 4)
    await gate.check()
    return RedisBulkheadStore(gate, no_reader, Keys(), "ollama", policy, "w")


class Both:
    """The store and the rules, step by step. With `batch_after` (seconds), batch calls have a share."""

    def __init__(self, store: RedisBulkheadStore, redis: Redis, policy: BulkheadPolicy) -> None:
        self.store = store
        self.reserve = policy.reserve
        self.redis = redis
        self.after_us = round(policy.batch_after * 1e6)
        self.most = rules.most_permits(policy.limit, policy.tenant_share)
        self.line = WaitQueue()

    async def take(self, priority: Priority, tenant: str, *, queues: bool) -> None:
        taken = await self.store.take(priority, tenant, queues=queues)
        expected = rules.retry_after(self.line.service_ms, rules.ahead(self.line.queue, priority), POLICY.limit)
        ticket = taken.ticket or local_ticket(priority, tenant, "w")
        max_queue = POLICY.max_queue if queues else rules.NO_QUEUE
        free = rules.is_free(self.line, POLICY.limit, self.reserve, ticket)
        self.line, verdict, _ = rules.take(
            self.line, POLICY.limit, max_queue, ticket, self.reserve, asked_us(ticket), self.most
        )
        assert taken.verdict is verdict
        assert taken.by_share == (free and verdict is not AcquireResult.GRANTED)
        if verdict is not AcquireResult.GRANTED:
            assert taken.retry_after == pytest.approx(expected, abs=0.002)

    async def give(self, ticket: str, held_ms: int) -> None:
        seconds, micros = await self.redis.time()
        last, last_pause = await self.batch_us()
        granted = await self.store.give([PermitReturn(ticket, held_ms)])
        started, pause = await self.batch_us()
        # Without a start, the script's time is known only to be later, and no batch call was due by then.
        now_us = started if started != last else seconds * 1_000_000 + micros
        if pause != last_pause:
            now_us = pause - (held_ms * 1000 * rules.BATCH_PART // POLICY.limit - held_ms * 1000)
        share = BatchShare(now_us, self.after_us)
        self.line, expected = rules.give(self.line, POLICY.limit, ticket, held_ms, self.reserve, share, self.most)
        assert granted == list(expected)

    async def batch_us(self) -> tuple[int, int]:
        """Returns when a batch call last started, and when one may go first after a long one."""
        last, pause = await self.redis.hmget("rag:bulkhead:{ollama}:stats", ["batch_us", "batch_next_us"])
        return int(last or 0), int(pause or 0)

    async def compare(self) -> None:
        reading = await self.store.read()
        assert reading.in_use == len(self.line.held)
        assert reading.queue == self.line.queue
        held = set(texts(await self.redis.zrange("rag:bulkhead:{ollama}", 0, -1)))
        assert held == self.line.held
        renewed = await self.store.renew_leases((), self.line.queue)
        assert (renewed.granted, renewed.positions) == ([], rules.positions(self.line))


@pytest.mark.parametrize("seed", range(9))
async def test_the_same_story_ends_the_same(redis: BatchingRedis, seed: int) -> None:
    chance = random.Random(seed)
    reserve = RESERVES[seed % len(RESERVES)]
    batch_after = AFTER[seed // len(RESERVES)]
    share = SHARES[(seed + seed // len(RESERVES)) % len(SHARES)]
    policy = replace(POLICY, reserve=reserve, batch_after=batch_after, tenant_share=share)
    both = Both(await store_of(redis, policy), redis, policy)
    kinds = [Priority.BACKGROUND, Priority.BATCH, Priority.USER]
    for _ in range(120):
        known = sorted(both.line.held) + list(both.line.queue)
        if known and chance.random() < 0.4:
            ticket = chance.choice(known)
            await both.give(ticket, chance.randrange(5_000) if ticket in both.line.held else -1)
        else:
            (priority,) = chance.choices(kinds, [3, 2, 5] if reserve else [1, 2, 4])
            await both.take(priority, chance.choices(TENANTS, WEIGHTS)[0], queues=chance.random() < 0.8)
        await both.compare()
