"""A cancellation that a library loses, as `asyncio.wait_for` of Python 3.11 can: the work still ends, and Ollama is not
called for a caller that is gone or out of time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.connections import BatchingRedis
from tests.stub_ollama import StubOllama
from tests.support.service import Service
from tests.support.waiting import wait_until_async

NO_STORE = {"Cache-Control": "no-store"}
"""Such a question asks Redis for passages only, in the request's own task."""


class DeafCommand:
    """Keeps the next command of a request waiting until it is cancelled, and loses that cancellation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed = False
        self.waiting = asyncio.Event()
        self.lost = 0
        execute = BatchingRedis.execute_command

        async def deaf(client: BatchingRedis, *of: Any, **named: Any) -> Any:
            if self.armed and _is_a_request():
                self.armed = False
                self.waiting.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.lost += 1
            return await execute(client, *of, **named)

        monkeypatch.setattr(BatchingRedis, "execute_command", deaf)


def _is_a_request() -> bool:
    """Whether uvicorn made the task, for a request; the worker's own tasks go on."""
    task = asyncio.current_task()
    return task is not None and "run_asgi" in repr(task.get_coro())


@asynccontextmanager
async def sent(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """A question that its caller leaves at the end of the block."""
    asking = asyncio.create_task(client.post("/query", json={"question": "Who is late?"}, headers=NO_STORE))
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait([asking])


async def test_who_has_left_starts_no_call_though_the_cancellation_is_lost(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve()
    command = DeafCommand(monkeypatch)
    command.armed = True
    async with sent(client):
        await asyncio.wait_for(command.waiting.wait(), 10)

    async def left() -> bool:
        return 'ragherd_queries_total{kind="none",status="left"} 1.0' in (await client.get("/metrics")).text

    await wait_until_async(left)
    assert command.lost == 1
    assert "/api/chat" not in stub.stats["requests"]
    bulkheads = (await client.get("/api/bulkhead/metrics")).json()["bulkheads"]
    assert {bulkhead["in_use"] for bulkhead in bulkheads.values()} == {0}


async def test_who_is_late_starts_no_call_though_the_cancellation_is_lost(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve()
    command = DeafCommand(monkeypatch)
    command.armed = True
    headers = {**NO_STORE, "X-Request-Timeout": "0.1"}
    response = await client.post("/query", json={"question": "Who is late?"}, headers=headers)
    assert (response.status_code, command.lost) == (504, 1)
    assert "/api/chat" not in stub.stats["requests"]


async def test_sending_a_command_loses_no_cancellation(redis: Redis, redis_url: str) -> None:
    """Cancelled in whatever step of the loop, a command ends as cancelled or has its reply: never both, and not late.

    On Python 3.11 `asyncio.wait_for` around the write loses the cancellation in one of these steps.
    """
    async with short_commands(RedisAddress(redis_url, 1.0, 1.0, 4)) as client:
        for fresh in (True, False):
            for steps in range(40):
                if fresh:
                    await client.connection_pool.disconnect()
                command = asyncio.ensure_future(client.ping())
                for _ in range(steps):
                    await asyncio.sleep(0)
                was_done = command.done()
                command.cancel()
                await asyncio.wait([command])
                assert was_done or command.cancelled(), f"lost after {steps} steps"


async def test_a_reply_that_came_while_the_worker_was_busy_is_no_lost_redis(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 0.05, 0.05, 4)) as client:
        await client.ping()
        for steps in range(6):
            command = asyncio.ensure_future(client.echo("there"))
            for _ in range(steps):
                await asyncio.sleep(0)
            time.sleep(0.2)  # the loop stands still, while the reply lies in the socket or is still to be asked for
            assert await command == b"there"


async def test_opening_a_connection_does_not_pay_for_the_lag_either(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, 0.05, 0.05, 4)) as client:
        for steps in range(12):
            await client.connection_pool.disconnect()
            command = asyncio.ensure_future(client.echo("there"))
            for _ in range(steps):
                await asyncio.sleep(0)
            time.sleep(0.2)
            assert await command == b"there"
