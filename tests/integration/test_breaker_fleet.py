"""The breaker shared by real processes on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, Sentinel

from api.embedded.redis_server import EmbeddedRedis
from tests.support.breaker_process import BreakerProcess, Reply
from tests.support.redis_sentinel import sentinel_failover
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.processes

WORKERS = 8
POLICY: dict[str, Any] = {
    "failure_threshold": 5,
    "timeout_ms": 1_000,
    "timeout_max_ms": 4_000,
    "half_open_max_calls": 3,
    "lease_ms": 1_000,
}
LOG = "rag:cb:{ollama}:log"


class Backend:
    """A backend that answers `ok` or `no`, after a delay or only when let go; counts calls in flight."""

    def __init__(self) -> None:
        self.answer = b"no\n"
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.in_flight = 0
        self.most_in_flight = 0
        self.calls = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[:2]
        finally:
            self.may_answer.set()
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        gone = asyncio.create_task(reader.read())  # the caller's process may be killed
        allowed = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait({gone, allowed}, return_when=asyncio.FIRST_COMPLETED)
        self.in_flight -= 1
        if not gone.done():
            writer.write(self.answer)
        gone.cancel()
        allowed.cancel()
        writer.close()


class Fleet:
    """Several worker processes, a backend and the Redis that they share."""

    def __init__(self, workers: list[BreakerProcess], backend: Backend, redis: Redis) -> None:
        self.workers = workers
        self.backend = backend
        self.redis = redis

    async def everyone(self, do: str, **arguments: Any) -> list[Reply]:
        return list(await asyncio.gather(*(worker.ask(do, **arguments) for worker in self.workers)))

    async def all_say(self, state: str) -> bool:
        return all(reply["state"] == state for reply in await self.everyone("state"))

    async def log(self) -> list[tuple[str, str]]:
        entries: Any = await self.redis.xrange(LOG)
        return [(fields[b"from"].decode(), fields[b"to"].decode()) for _, fields in entries]

    async def break_it(self) -> None:
        """Failures until everybody knows that it is open: a success reported a moment late may break a first row."""
        self.backend.answer = b"no\n"

        async def broken() -> bool:
            await self.workers[0].ask("calls", times=5, concurrency=1)
            return await self.all_say("OPEN")

        await wait_until_async(broken)

    async def wait_elapsed(self) -> None:
        """Until the wait of the open breaker is over, by Redis's clock."""

        async def over() -> bool:
            until = int((await self.redis.hget("rag:cb:{ollama}", "until_ms")) or 0)
            seconds, micros = await self.redis.time()
            return seconds * 1000 + micros // 1000 > until

        await wait_until_async(over)


@asynccontextmanager
async def fleet_of(size: int, redis: Redis, url: str, **policy: Any) -> AsyncIterator[Fleet]:
    backend = Backend()
    async with backend.serving() as address:
        starting = (BreakerProcess.start(url, {**POLICY, **policy}, address) for _ in range(size))
        workers = list(await asyncio.gather(*starting))
        try:
            yield Fleet(workers, backend, redis)
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


async def test_eight_processes_open_once_probe_within_bounds_and_close_together(redis: Redis, redis_url: str) -> None:
    async with fleet_of(WORKERS, redis, redis_url) as fleet:
        await fleet.everyone("calls", times=30, concurrency=4)
        await wait_until_async(lambda: fleet.all_say("OPEN"))
        assert await fleet.log() == [("CLOSED", "OPEN")]

        fleet.backend.answer = b"ok\n"
        fleet.backend.most_in_flight = 0
        fleet.backend.may_answer.clear()
        await fleet.wait_elapsed()
        storm = [
            asyncio.create_task(worker.ask("calls", times=400, concurrency=10, pause=0.02)) for worker in fleet.workers
        ]
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 3))
        fleet.backend.may_answer.set()
        await asyncio.gather(*storm)
        await wait_until_async(lambda: fleet.all_say("CLOSED"))
        assert await fleet.log() == [("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED")]


async def test_while_half_open_no_more_calls_are_in_flight_than_permits(redis: Redis, redis_url: str) -> None:
    async with fleet_of(WORKERS, redis, redis_url) as fleet:
        await fleet.break_it()
        fleet.backend.most_in_flight = 0
        fleet.backend.may_answer.clear()
        await fleet.wait_elapsed()
        storm = [asyncio.create_task(w.ask("calls", times=400, concurrency=10, pause=0.02)) for w in fleet.workers]
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 3))
        permits = await redis.zcard("rag:cb:{ollama}:permits")
        assert (permits, fleet.backend.most_in_flight) == (3, 3)
        fleet.backend.may_answer.set()  # all three fail: open again, with a doubled wait
        replies = await asyncio.gather(*storm)
        assert fleet.backend.most_in_flight == 3
        assert sum(reply["failed"] for reply in replies) >= 3
        assert int(await redis.hget("rag:cb:{ollama}", "open_ms") or 0) >= 2_000


async def test_everybody_hears_of_each_transition_once_and_within_50_ms(redis: Redis, redis_url: str) -> None:
    async with fleet_of(WORKERS, redis, redis_url) as fleet:
        await fleet.break_it()
        states = await fleet.everyone("state")
        assert [len(state["heard"]) for state in states] == [1] * WORKERS
        assert {state["pybreaker"] for state in states} == {"open"}
        delays = [heard["heard_ms"] - heard["at_ms"] for state in states for heard in state["heard"]]
        assert (
            sorted(delays)[len(delays) // 2] < 50
        )  # the median: a busy machine may delay one; see scripts/bench_breaker


async def test_a_killed_prober_frees_its_permit_and_the_breaker_recovers(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, half_open_max_calls=1) as fleet:
        await fleet.break_it()
        fleet.backend.answer = b"ok\n"
        fleet.backend.may_answer.clear()
        await fleet.wait_elapsed()
        prober, other = fleet.workers
        await prober.ask("hold")
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 1))
        assert (await other.ask("calls", times=1, concurrency=1))["rejected"] == 1
        await prober.kill()
        fleet.backend.may_answer.set()

        async def recovered() -> bool:
            return bool((await other.ask("calls", times=1, concurrency=1))["ok"] == 1)

        await wait_until_async(recovered)
        assert await redis.hget("rag:cb:{ollama}", "half_open_lost") == b"1"
        assert (await fleet.log())[-1] == ("HALF_OPEN", "CLOSED")


async def test_a_living_prober_keeps_its_permit_beyond_the_lease(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, half_open_max_calls=1, lease_ms=300) as fleet:
        await fleet.break_it()
        fleet.backend.answer = b"ok\n"
        fleet.backend.may_answer.clear()
        await fleet.wait_elapsed()
        prober, other = fleet.workers
        await prober.ask("hold")
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 1))
        first = await _lease(redis)
        await wait_until_async(lambda: _later(redis, first + 600))
        assert (await other.ask("calls", times=1, concurrency=1))["rejected"] == 1
        fleet.backend.may_answer.set()
        assert (await prober.ask("release_held"))["ends"] == ["ok"]
        await wait_until_async(lambda: fleet.all_say("CLOSED"))


async def test_callers_that_leave_never_wedge_it(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        await fleet.break_it()
        fleet.backend.answer = b"ok\n"
        fleet.backend.may_answer.clear()
        await fleet.wait_elapsed()
        for _ in range(3):
            await fleet.workers[0].ask("hold")
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 3))
        await fleet.workers[0].ask("cancel_held")
        assert await redis.zcard("rag:cb:{ollama}:permits") == 0
        fleet.backend.may_answer.set()
        assert (await fleet.workers[1].ask("calls", times=3, concurrency=1))["ok"] == 3
        assert (await fleet.log())[1:] == [("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED")]


async def test_a_late_success_from_before_the_opening_does_not_close_it(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        slow, other = fleet.workers
        fleet.backend.answer = b"ok\n"
        fleet.backend.may_answer.clear()
        for _ in range(3):
            await slow.ask("hold")
        await wait_until_async(lambda: _true(fleet.backend.in_flight == 3))
        late, fleet.backend.may_answer = fleet.backend.may_answer, asyncio.Event()
        fleet.backend.may_answer.set()
        fleet.backend.answer = b"no\n"
        await other.ask("calls", times=5, concurrency=1)
        await wait_until_async(lambda: fleet.all_say("OPEN"))
        fleet.backend.answer = b"ok\n"
        late.set()
        assert (await slow.ask("release_held"))["ends"] == ["ok"] * 3

        async def counted() -> bool:
            return await redis.hget("rag:cb:{ollama}", "stale_results") == b"3"

        await wait_until_async(counted)
        assert await fleet.log() == [("CLOSED", "OPEN")]
        assert await fleet.all_say("OPEN")


async def test_flushall_while_closed_the_next_outcomes_count(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        fleet.backend.answer = b"ok\n"
        await fleet.everyone("calls", times=3, concurrency=1)
        await redis.flushall()
        await fleet.break_it()
        assert await fleet.log() == [("CLOSED", "OPEN")]


async def test_flushall_while_open_leaves_nobody_stuck(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url, timeout_ms=60_000, timeout_max_ms=60_000) as fleet:
        await fleet.break_it()
        await redis.flushall()
        fleet.backend.answer = b"ok\n"

        async def answered() -> bool:
            return all(reply["ok"] for reply in await fleet.everyone("calls", times=1, concurrency=1))

        await wait_until_async(answered)


async def test_without_redis_the_same_rules_go_on_locally_and_the_shared_state_returns(
    redis: Redis, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        fleet.backend.answer = b"ok\n"
        await fleet.everyone("calls", times=3, concurrency=1)
        redis_server.kill()
        try:
            replies = await fleet.everyone("calls", times=5, concurrency=1)
            assert [reply["ok"] for reply in replies] == [5, 5]
            fleet.backend.answer = b"no\n"
            broken = await fleet.workers[0].ask("calls", times=20, concurrency=1)
            assert broken["failed"] + broken["rejected"] == 20
            assert 5 <= broken["failed"] <= 10  # a success reported a moment late breaks a row
            assert broken["slowest_ms"] < 1_000
            assert (await fleet.workers[0].ask("state"))["store"] == "local"
            fleet.backend.answer = b"ok\n"
            assert (await fleet.workers[1].ask("calls", times=1, concurrency=1))["ok"] == 1
        finally:
            redis_server.start()

        async def shared() -> bool:
            return all(reply["store"] == "shared" for reply in await fleet.everyone("state"))

        await wait_until_async(shared)
        replies = await fleet.everyone("calls", times=3, concurrency=1)
        assert [reply["ok"] for reply in replies] == [3, 3]  # the local opening was never pushed up


async def test_a_known_open_is_honoured_without_redis(
    redis: Redis, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    async with fleet_of(2, redis, redis_url, timeout_ms=2_000) as fleet:
        await fleet.break_it()
        redis_server.kill()
        try:
            fleet.backend.answer = b"ok\n"
            first = await fleet.everyone("calls", times=5, concurrency=1)
            assert [reply["rejected"] for reply in first] == [5, 5]

            async def answered() -> bool:
                return all(reply["ok"] for reply in await fleet.everyone("calls", times=1, concurrency=1))

            await wait_until_async(answered)
        finally:
            redis_server.start()


async def test_while_redis_takes_no_writes_it_opens_locally_and_the_shared_state_returns(
    redis: Redis, redis_url: str
) -> None:
    async with fleet_of(1, redis, redis_url, timeout_ms=60_000, timeout_max_ms=60_000) as fleet:
        worker = fleet.workers[0]
        fleet.backend.answer = b"ok\n"
        await worker.ask("calls", times=3, concurrency=1)
        fleet.backend.answer = b"no\n"
        async with redis_full(redis):
            ends = await worker.ask("calls", times=8, concurrency=1, pause=0.6)  # polls succeed in between
            assert (ends["failed"], ends["rejected"]) == (5, 3)
            assert (await worker.ask("state"))["store"] == "local"

        async def shared() -> bool:
            return bool((await worker.ask("state"))["store"] == "shared")

        await wait_until_async(shared)
        assert await fleet.log() == []


@asynccontextmanager
async def redis_full(redis: Redis) -> AsyncIterator[None]:
    """Redis answers reads, and every write with OOM."""
    before: dict[Any, Any] = {**await redis.config_get("maxmemory"), **await redis.config_get("maxmemory-policy")}
    try:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1mb")
        yield
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)


async def _true(value: bool) -> bool:
    return value


async def _lease(redis: Redis) -> int:
    ends: Any = await redis.zrange("rag:cb:{ollama}:permits", 0, 0, withscores=True)
    return int(ends[0][1])


async def _later(redis: Redis, moment_ms: int) -> bool:
    seconds, micros = await redis.time()
    return seconds * 1000 + micros // 1000 > moment_ms


async def test_scripts_that_vanished_are_loaded_again(redis: Redis, redis_url: str) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        fleet.backend.answer = b"ok\n"
        await fleet.everyone("calls", times=2, concurrency=1)
        await redis.script_flush()
        await fleet.break_it()
        assert await fleet.log() == [("CLOSED", "OPEN")]


async def test_a_restart_without_data_leaves_nobody_stuck(
    redis: Redis, redis_server: EmbeddedRedis, redis_url: str
) -> None:
    async with fleet_of(2, redis, redis_url, timeout_ms=60_000, timeout_max_ms=60_000) as fleet:
        await fleet.break_it()
        redis_server.kill()
        redis_server.start()  # it keeps nothing on disk
        await redis.connection_pool.disconnect()
        fleet.backend.answer = b"ok\n"

        async def answered() -> bool:
            return all(reply["ok"] for reply in await fleet.everyone("calls", times=1, concurrency=1))

        await wait_until_async(answered)
        await fleet.break_it()
        assert await fleet.log() == [("CLOSED", "OPEN")]


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
async def test_a_clock_that_jumps_on_a_worker_changes_nothing(redis: Redis, redis_url: str, seconds: int) -> None:
    async with fleet_of(2, redis, redis_url) as fleet:
        await fleet.workers[0].ask("jump", seconds=seconds)
        await fleet.break_it()
        fleet.backend.answer = b"ok\n"
        assert [reply["rejected"] for reply in await fleet.everyone("calls", times=3, concurrency=1)] == [3, 3]
        await fleet.wait_elapsed()
        assert (await fleet.workers[0].ask("calls", times=3, concurrency=1))["ok"] == 3
        await wait_until_async(lambda: fleet.all_say("CLOSED"))


async def test_a_failover_by_sentinel_keeps_the_state_and_the_rules(tmp_path: Path) -> None:
    with sentinel_failover(tmp_path) as failover:
        primary = Sentinel(_sentinels(failover.url)).master_for("primary")  # type: ignore[no-untyped-call]
        async with primary as redis, fleet_of(2, redis, failover.url, timeout_ms=3_000) as fleet:
            fleet.backend.answer = b"ok\n"
            await fleet.everyone("calls", times=3, concurrency=1)
            await fleet.break_it()
            before = failover.primary_port()
            await redis.wait(1, 5_000)
            failover.primary.kill()
            fleet.backend.answer = b"ok\n"

            async def closed() -> bool:
                await fleet.everyone("calls", times=1, concurrency=1)
                return await fleet.all_say("CLOSED")

            async def shared() -> bool:
                return all(reply["store"] == "shared" for reply in await fleet.everyone("state"))

            await wait_until_async(lambda: _true(failover.primary_port() != before), timeout=30)
            await wait_until_async(shared, timeout=30)
            await wait_until_async(closed, timeout=30)
            assert (await fleet.log())[0] == ("CLOSED", "OPEN")  # the history came along
            await fleet.break_it()  # scripts and rules work on the promoted server


def _sentinels(url: str) -> list[tuple[str, int]]:
    hosts = url.removeprefix("redis+sentinel://").partition("/")[0].split(",")
    return [(host.partition(":")[0], int(host.partition(":")[2])) for host in hosts]
