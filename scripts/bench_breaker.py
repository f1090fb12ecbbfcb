"""Measures the circuit breaker: its cost per call, how fast a transition reaches a fleet, and the effect of losing
Redis.

    .venv/bin/python -m scripts.bench_breaker

Starts an embedded Redis (the extra `embedded`) and 8 processes for the fleet. Compare figures of one run only: absolute
times depend on the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial
from typing import Any

from redis.asyncio import Redis

from api.breaker.fleet_breaker import FleetBreaker, kept_current
from api.breaker.state import BreakerPolicy
from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.errors import BreakerOpen
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.breaker import RedisBreakerStore
from tests.support.breaker_process import BreakerProcess

CALLS = 20_000
WORKERS = 8
TRANSITIONS = 60


async def main() -> None:
    with embedded_redis(persistent=False) as server:
        async with Redis.from_url(server.url) as redis:
            await cost_of_a_call(server.url, redis)
            await speed_of_a_transition(server.url, redis)
        await cost_of_a_lost_redis(server)


async def cost_of_a_call(url: str, redis: Redis) -> None:
    print(f"Cost of an empty call, {CALLS} in sequence")
    print(f"{'':28}{'CPU us/call':>12}{'commands/call':>15}")
    address = RedisAddress(url, timeout=0.5, connect_timeout=0.5, max_connections=16)
    async with short_commands(address) as client:
        gate = HealthGatedRedis(client, 16)
        await gate.check()
        for label, enabled, action in (
            ("no breaker", None, None),
            ("switched off (counts only)", False, "RESET"),
            ("closed", True, "RESET"),
            ("open (rejected)", True, "OPEN"),
        ):
            if enabled is None:
                cpu, commands = await measured(redis, _without)
            else:
                policy = BreakerPolicy(enabled=enabled)
                store = RedisBreakerStore(gate, partial(blocking_reader, address), Keys(), "bench", policy, "bench")
                async with kept_current(FleetBreaker("bench", policy, store, "bench")) as breaker:
                    await breaker.override(action, "bench")  # type: ignore[arg-type]
                    cpu, commands = await measured(redis, partial(_through, breaker))
            print(f"{label:28}{cpu:12.1f}{commands:15.4f}")


async def measured(redis: Redis, call: Any) -> tuple[float, float]:
    before, started = await commands_so_far(redis), time.process_time()
    for number in range(CALLS):
        await call()
        if number % 100 == 0:
            await asyncio.sleep(0)  # lets the other tasks of the worker run, as between real calls
    cpu = (time.process_time() - started) / CALLS * 1e6
    return cpu, (await commands_so_far(redis) - before - 1) / CALLS


async def commands_so_far(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])


async def _without() -> None:
    return None


async def _through(breaker: FleetBreaker) -> None:
    try:
        async with breaker.attempt() as attempt:
            await attempt.succeeded(0.001)
    except BreakerOpen:
        return


async def speed_of_a_transition(url: str, redis: Redis) -> None:
    await redis.flushall()
    workers = await start(url)
    for number in range(TRANSITIONS):
        await workers[0].ask("override", action="OPEN" if number % 2 == 0 else "CLOSED")
        await asyncio.sleep(0.05)
    replies = [await worker.ask("state") for worker in workers]
    delays = [heard["heard_ms"] - heard["at_ms"] for reply in replies for heard in reply["heard"]]
    await asyncio.gather(*(worker.stop() for worker in workers))
    print(f"\nTime from a transition in Redis until each worker knows, {WORKERS} processes, {len(delays)} notices (ms)")
    print(f"  p50 {quantile(delays, 50):.1f}   p99 {quantile(delays, 99):.1f}   max {max(delays):.1f}")
    print(f"  notices expected: {WORKERS * TRANSITIONS}, received exactly once: {len(delays) == WORKERS * TRANSITIONS}")


async def cost_of_a_lost_redis(server: EmbeddedRedis) -> None:
    backend = await asyncio.start_server(_always_ok, "127.0.0.1", 0)
    workers = await start(server.url, backend.sockets[0].getsockname()[:2])
    print(
        f"\nRedis killed (SIGKILL) under load and started again, {WORKERS} processes, slowest call of each phase (ms)"
    )
    for phase in ("before", "killed", "gone", "started", "after"):
        load = [asyncio.create_task(w.ask("calls", times=300, concurrency=4, pause=0.002)) for w in workers]
        await asyncio.sleep(0.05)
        if phase == "killed":
            server.kill()
        if phase == "started":
            server.start()
        replies = await asyncio.gather(*load)
        ok, other = sum(r["ok"] for r in replies), sum(r["failed"] + r["rejected"] for r in replies)
        slowest = max(reply["slowest_ms"] for reply in replies)
        print(f"  {phase:8} slowest {slowest:7.1f}   answered {ok}   failed or rejected {other}")
    await asyncio.gather(*(worker.stop() for worker in workers))
    backend.close()


async def _always_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"ok\n")
    writer.close()


async def start(url: str, backend: tuple[str, int] = ("127.0.0.1", 1)) -> list[BreakerProcess]:
    return list(await asyncio.gather(*(BreakerProcess.start(url, {}, backend) for _ in range(WORKERS))))


def quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    asyncio.run(main())
