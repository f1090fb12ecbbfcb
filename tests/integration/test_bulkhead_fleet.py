"""The bulkhead shared by real processes on a real Redis. The backend counts the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from tests.support.breaker_process import BreakerProcess, Reply
from tests.support.bulkhead_process import start_worker
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.processes

PERMITS = "rag:bulkhead:{ollama}"
QUEUE = "rag:bulkhead:{ollama}:queue"
STATS = "rag:bulkhead:{ollama}:stats"
POLICY: dict[str, Any] = {"limit": 3, "max_queue": 1000, "max_wait": 30.0, "lease_ms": 1_000}


class Backend:
    """Answers `ok`, on demand one call at a time. Records tenants in order and counts calls in flight."""

    def __init__(self) -> None:
        self.tenants: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._may_answer = asyncio.Semaphore(0)
        self.held = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[:2]
        finally:
            self.release(1_000_000)
            server.close()

    def release(self, calls: int) -> None:
        """Lets this many calls be answered, now or when they arrive."""
        for _ in range(min(calls, 10_000)):
            self._may_answer.release()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tenants.append((await reader.readline()).decode().strip())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        gone = asyncio.create_task(reader.read())  # the caller's process may be killed
        allowed = asyncio.create_task(self._may_answer.acquire() if self.held else asyncio.sleep(0.005))
        await asyncio.wait({gone, allowed}, return_when=asyncio.FIRST_COMPLETED)
        self.in_flight -= 1
        if not gone.done():
            writer.write(b"ok\n")
        gone.cancel()
        allowed.cancel()
        writer.close()


class Fleet:
    """Several worker processes, a backend and a shared Redis."""

    def __init__(self, workers: list[BreakerProcess], backend: Backend, redis: Redis) -> None:
        self.workers = workers
        self.backend = backend
        self.redis = redis

    async def everyone(self, do: str, **arguments: Any) -> list[Reply]:
        return list(await asyncio.gather(*(worker.ask(do, **arguments) for worker in self.workers)))

    async def in_flight(self, calls: int) -> None:
        """Waits until the backend has this many calls in flight."""

        async def reached() -> bool:
            return self.backend.in_flight == calls

        await wait_until_async(reached, interval=0.002)

    async def in_line(self, calls: int) -> None:
        """Waits until this many calls wait in Redis."""

        async def reached() -> bool:
            return bool(await self.redis.zcard(QUEUE) == calls)

        await wait_until_async(reached, interval=0.002)

    async def served(self, calls: int) -> None:
        """Waits until the backend has received this many calls."""

        async def reached() -> bool:
            return len(self.backend.tenants) >= calls

        await wait_until_async(reached, interval=0.002)

    async def nothing_is_left(self) -> bool:
        return not (await self.redis.zcard(PERMITS) or await self.redis.zcard(QUEUE))


@asynccontextmanager
async def fleet_of(size: int, redis: Redis, url: str, **policy: Any) -> AsyncIterator[Fleet]:
    backend = Backend()
    async with backend.serving() as address:
        starting = (start_worker(url, {**POLICY, "workers": size, **policy}, address) for _ in range(size))
        workers = list(await asyncio.gather(*starting))
        try:
            yield Fleet(workers, backend, redis)
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


def ends(replies: list[Reply]) -> dict[str, int]:
    total: dict[str, int] = {}
    for reply in replies:
        for end, count in reply["ends"].items():
            total[end] = total.get(end, 0) + count
    return total


async def test_never_more_calls_in_flight_than_permits_and_all_are_served(redis: Redis, redis_url: str) -> None:
    async with fleet_of(4, redis, redis_url) as fleet:
        replies = await fleet.everyone("calls", tenant="acme", times=50, concurrency=20)
        assert ends(replies) == {"ok": 200}
        assert fleet.backend.most_in_flight == 3
        await wait_until_async(fleet.nothing_is_left)


async def test_a_killed_holder_s_permit_returns_when_its_lease_ends(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        await other.ask("begin", name="b")
        await fleet.in_line(1)
        await holder.kill()
        await fleet.served(2)  # nobody gave it back
        fleet.backend.release(1)
        assert (await other.ask("end", name="b"))["end"] == "ok"
        assert await redis.hget(STATS, "lost_permits") == b"1"


async def test_a_killed_waiter_is_no_obstacle(redis: Redis, redis_url: str) -> None:
    async with fleet_of(3, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        holder, waiter, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        await waiter.ask("begin", name="b")
        await fleet.in_line(1)
        await other.ask("begin", name="c")
        await fleet.in_line(2)
        await waiter.kill()
        fleet.backend.release(2)
        assert (await other.ask("end", name="c"))["end"] == "ok"


async def lease_end(redis: Redis) -> float:
    """Returns the earliest end of a permit, in milliseconds."""
    held: Any = await redis.zrange(PERMITS, 0, 0, withscores=True)
    return float(held[0][1])


async def test_a_living_holder_keeps_its_permit_beyond_the_lease(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1, lease_ms=300) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        first = await lease_end(redis)
        await other.ask("begin", name="b")

        async def renewed_twice_over() -> bool:
            return await lease_end(redis) > first + 900

        await wait_until_async(renewed_twice_over)
        assert fleet.backend.tenants == ["acme"]
        fleet.backend.release(2)
        assert [(await w.ask("end", name=n))["end"] for w, n in ((holder, "a"), (other, "b"))] == ["ok", "ok"]


async def test_a_tenant_that_floods_does_not_make_another_wait(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        flooding, other = fleet.workers
        for number in range(40):
            await flooding.ask("begin", name=f"f{number}", tenant="flood")
        await fleet.in_line(39)
        for number in range(3):
            await other.ask("begin", name=f"s{number}", tenant="small")
        await fleet.in_line(42)
        for served in range(1, 8):
            fleet.backend.release(1)
            await fleet.served(served + 1)
        assert fleet.backend.tenants[1:8] == ["flood", "small", "flood", "small", "flood", "small", "flood"]


async def test_a_full_line_makes_room_for_the_tenant_that_has_fewer(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1, max_queue=4) as fleet:
        fleet.backend.held = True
        flooding, other = fleet.workers
        for number in range(5):
            await flooding.ask("begin", name=f"f{number}", tenant="flood")
            await fleet.in_line(number)
        assert (await flooding.ask("calls", tenant="flood", times=3, concurrency=1))["ends"] == {"queue_full": 3}
        await other.ask("begin", name="s", tenant="small")
        assert (await flooding.ask("end", name="f4"))["end"] == "displaced"
        assert await redis.zcard(QUEUE) == 4
        fleet.backend.release(3)  # the call under way, one of the flood, and then it is the other's turn
        assert (await other.ask("end", name="s"))["end"] == "ok"
        stats: Any = await redis.hgetall(STATS)
        assert (stats[b"rejected_queue_full"], stats[b"rejected_displaced"]) == (b"3", b"1")


async def test_background_work_waits_behind_every_user(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        one, other = fleet.workers
        await one.ask("begin", name="first", tenant="first")
        await fleet.in_flight(1)
        await one.ask("begin", name="warm-up", tenant="warm-up", priority="background")
        await fleet.in_line(1)
        for number in range(3):
            await other.ask("begin", name=f"u{number}", tenant="user")
        await fleet.in_line(4)
        for served in range(1, 5):
            fleet.backend.release(1)
            await fleet.served(served + 1)
        assert fleet.backend.tenants == ["first", "user", "user", "user", "warm-up"]


async def test_users_pass_a_flood_of_batch_calls_and_a_killed_worker_s_calls_vanish(
    redis: Redis, redis_url: str
) -> None:
    async with fleet_of(3, redis, redis_url, limit=2, lease_ms=1_000) as fleet:
        fleet.backend.held = True
        flooding, killed, other = fleet.workers
        for number in range(100):
            await flooding.ask("begin", name=f"b{number}", tenant="flood", priority="batch")
        await fleet.in_line(98)
        for number in range(100):
            await killed.ask("begin", name=f"k{number}", tenant="killed", priority="batch")
        for number in range(20):
            await other.ask("begin", name=f"u{number}", tenant="user")
        await fleet.in_line(218)
        await killed.kill()
        await fleet.in_line(118)
        for served in range(1, 21):
            fleet.backend.release(1)
            await fleet.served(served + 2)
        assert fleet.backend.tenants[2:22] == ["user"] * 20
        fleet.backend.release(100)
        for number in range(100):
            assert (await flooding.ask("end", name=f"b{number}"))["end"] == "ok"


async def test_who_waited_too_long_is_told_and_leaves_the_line(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1, max_wait=0.2) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        assert (await other.ask("calls", tenant="acme", times=2, concurrency=2))["ends"] == {"deadline": 2}
        await fleet.in_line(0)

        async def counted() -> bool:
            return await redis.hget(STATS, "rejected_deadline") == b"2"

        await wait_until_async(counted)


async def test_who_leaves_while_it_waits_leaves_the_line_at_once(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        await other.ask("begin", name="leaves")
        await fleet.in_line(1)
        await other.ask("begin", name="stays")
        await fleet.in_line(2)
        await other.ask("leave", name="leaves")
        await fleet.in_line(1)
        fleet.backend.release(2)
        assert (await other.ask("end", name="stays"))["end"] == "ok"
        assert len(fleet.backend.tenants) == 2
        await wait_until_async(fleet.nothing_is_left)


async def test_who_leaves_during_a_call_frees_its_permit(redis: Redis, redis_url: str) -> None:
    async with fleet_of(1, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        (worker,) = fleet.workers
        for number in range(5):
            await worker.ask("begin", name="a")
            await fleet.served(number + 1)
            await worker.ask("leave", name="a")
        await wait_until_async(fleet.nothing_is_left)


async def test_after_flushall_holders_count_again_and_nobody_is_stuck(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a", tenant="a")
        await fleet.in_flight(1)
        await other.ask("begin", name="b", tenant="b")
        await fleet.in_line(1)
        await redis.flushall()

        async def known_again() -> bool:
            return bool(await redis.zcard(PERMITS) >= 1)

        await wait_until_async(known_again)  # the holder's; the other one's too where it was served before that
        fleet.backend.release(2)
        assert (await holder.ask("end", name="a"))["end"] == "ok"
        assert (await other.ask("end", name="b"))["end"] == "ok"


async def test_without_redis_each_worker_keeps_to_its_share_and_the_shared_bound_returns(
    redis: Redis, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    async with fleet_of(2, redis, redis_url, limit=4) as fleet:
        fleet.backend.held = True
        one = fleet.workers[0]
        for number in range(6):
            await one.ask("begin", name=f"n{number}")
        await fleet.in_flight(4)
        await fleet.in_line(2)
        redis_server.kill()
        try:
            fleet.backend.release(2)
            await fleet.in_flight(2)  # its share: the two that waited wait on
            fleet.backend.release(2)
            await fleet.served(6)  # now they are served, without Redis
            assert fleet.backend.in_flight == 2
            fleet.backend.release(2)
            assert [(await one.ask("end", name=f"n{n}"))["end"] for n in range(6)] == ["ok"] * 6
            fleet.backend.most_in_flight = 0
            fleet.backend.release(40)
            replies = await fleet.everyone("calls", tenant="acme", times=20, concurrency=8)
            assert ends(replies) == {"ok": 40}
            assert fleet.backend.most_in_flight <= 4
            assert (await one.ask("state"))["store"] == "local"
        finally:
            redis_server.start()

        async def shared() -> bool:
            return {reply["store"] for reply in await fleet.everyone("state")} == {"shared"}

        await wait_until_async(shared)
        await redis.connection_pool.disconnect()
        assert await redis.zcard(PERMITS) == 0  # nothing local was pushed up
        fleet.backend.most_in_flight, fleet.backend.held = 0, False
        assert ends(await fleet.everyone("calls", tenant="acme", times=30, concurrency=10)) == {"ok": 60}
        assert fleet.backend.most_in_flight == 4


async def test_who_waits_when_redis_returns_goes_on_waiting_in_the_fleet_s_line(
    redis: Redis, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    async with fleet_of(1, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        (worker,) = fleet.workers
        redis_server.kill()
        try:
            await worker.ask("begin", name="a")
            await fleet.in_flight(1)
            await worker.ask("begin", name="b")
        finally:
            redis_server.start()

        async def served_by_the_fleet() -> bool:
            return (await worker.ask("state")) == {"in_use": 2, "waiting": 0, "store": "shared"}

        await wait_until_async(served_by_the_fleet)  # the local permit is not the fleet's
        fleet.backend.release(2)
        assert [(await worker.ask("end", name=name))["end"] for name in "ab"] == ["ok", "ok"]
        await redis.connection_pool.disconnect()
        await wait_until_async(fleet.nothing_is_left)


async def test_the_next_is_woken_by_a_message_and_not_by_the_poll(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1, lease_ms=10_000) as fleet:
        async with asyncio.timeout(15):  # 100 polls of half a second at the least would be 50
            replies = await fleet.everyone("calls", tenant="acme", times=50, concurrency=2)
        assert ends(replies) == {"ok": 100}


async def test_a_lost_message_costs_a_moment_and_not_the_place(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, limit=1) as fleet:
        fleet.backend.held = True
        holder, other = fleet.workers
        await holder.ask("begin", name="a")
        await fleet.in_flight(1)
        await other.ask("begin", name="b")
        await fleet.in_line(1)
        await redis.client_kill_filter(_type="pubsub")
        fleet.backend.release(2)
        assert (await other.ask("end", name="b"))["end"] == "ok"


async def test_a_permit_costs_one_round_trip(redis: Redis, redis_url: str) -> None:
    async with fleet_of(1, redis, redis_url) as fleet:
        (worker,) = fleet.workers
        await worker.ask("calls", tenant="acme", times=2, concurrency=1)
        await wait_until_async(fleet.nothing_is_left)
        before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        await worker.ask("calls", tenant="acme", times=50, concurrency=1)
        await wait_until_async(fleet.nothing_is_left)
        after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert 100 <= after - before <= 105  # a take and a give each, and the renewals meanwhile
