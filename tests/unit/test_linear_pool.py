"""The pool loses no slot, uses the most recently used connection first, and drops dead ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import httpcore
import pytest
from httpcore._backends.auto import AutoBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from api.ollama.connections import JOINED_BYTES, JoinedWrites, LinearPool
from tests.stub_ollama import StubOllama, running_stub

pytestmark = pytest.mark.slow

SIZE = 4
TIMEOUTS = {"pool": 5.0, "connect": 5.0}


@asynccontextmanager
async def stub_and_pool(keepalive: int = SIZE) -> AsyncIterator[tuple[StubOllama, LinearPool]]:
    pool = LinearPool(None, None, SIZE, keepalive, 30.0)
    async with running_stub() as stub, pool:
        yield stub, pool


async def opened(pool: LinearPool, stub: StubOllama) -> httpcore.Response:
    url = f"{stub.base_url}/api/version"
    request = httpcore.Request("GET", url, headers={"Host": "stub"}, extensions={"timeout": TIMEOUTS})
    return await pool.handle_async_request(request)


async def fetched(pool: LinearPool, stub: StubOllama) -> int:
    response = await opened(pool, stub)
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response.status


async def still_whole(pool: LinearPool, stub: StubOllama) -> None:
    """Checks that every slot can be used at the same time, so none was lost."""
    responses = await asyncio.gather(*(opened(pool, stub) for _ in range(SIZE)))
    assert pool.occupancy().active == SIZE
    for response in responses:
        await response.aclose()
    assert pool.occupancy().active == 0
    assert pool.occupancy().waiting == 0


def test_httpcore_is_a_version_with_known_internals() -> None:
    assert version("httpcore").startswith("1.0."), "compare linear_pool.py with the new AsyncConnectionPool"


async def test_no_slot_is_lost_to_cancellations_at_any_moment() -> None:
    chance = random.Random(7)
    async with stub_and_pool() as (stub, pool):

        async def churn() -> int:
            ended = 0
            for _ in range(625):
                task = asyncio.create_task(fetched(pool, stub))
                for _ in range(chance.randrange(24)):  # cancel after this many rounds of the event loop
                    await asyncio.sleep(0)
                for _ in range(chance.randrange(1, 4)):  # cancel again during the cleanup
                    task.cancel()
                    await asyncio.sleep(0)
                await asyncio.wait([task], timeout=10)
                ended += task.done()
            return ended

        assert sum(await asyncio.gather(*(churn() for _ in range(16)))) == 16 * 625
        await still_whole(pool, stub)


async def test_a_cancellation_while_the_body_closes_returns_the_slot() -> None:
    async with stub_and_pool() as (stub, pool):
        for turns in range(1, 9):
            for _ in range(SIZE + 1):
                response = await opened(pool, stub)
                task = asyncio.create_task(response.aclose())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
        await still_whole(pool, stub)


STEPS = st.lists(st.sampled_from(["open", "close", "cancel", "turn", "break"]), max_size=40)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_no_slot_is_lost_in_any_order_of_events(steps: list[str], seed: int) -> None:
    asyncio.run(_any_order(steps, random.Random(seed)))


async def _any_order(steps: list[str], chance: random.Random) -> None:
    async with stub_and_pool() as (stub, pool):
        tasks: list[asyncio.Task[httpcore.Response]] = []
        for step in steps:
            if step == "open":
                tasks.append(asyncio.create_task(opened(pool, stub)))
            elif step == "break":
                stub.break_connections()
            elif step == "turn":
                await asyncio.sleep(0)
            elif tasks:
                task = tasks.pop(chance.randrange(len(tasks)))
                if step == "cancel":
                    task.cancel()
                await _ended(task)
        for task in tasks:
            task.cancel()
            await _ended(task)
        await still_whole(pool, stub)


async def _ended(task: asyncio.Task[httpcore.Response]) -> None:
    """Closes the resource that the task opened, if any."""
    if not task.done():
        await asyncio.wait([task], timeout=0.05)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await task.result().aclose()


async def test_the_most_recently_used_connection_is_reused_first() -> None:
    async with stub_and_pool() as (stub, pool):
        responses = [await opened(pool, stub) for _ in range(3)]
        first, second, third = pool.connections
        for response in (responses[0], responses[2], responses[1]):
            await response.aread()
            await response.aclose()
        assert pool.connections == [first, third, second]
        again = await opened(pool, stub)
        assert not second.is_idle()
        await again.aclose()


async def test_no_more_idle_connections_are_kept_than_allowed() -> None:
    async with stub_and_pool(keepalive=2) as (stub, pool):
        responses = await asyncio.gather(*(opened(pool, stub) for _ in range(SIZE)))
        for response in responses:
            await response.aread()
            await response.aclose()
        assert pool.occupancy().idle == 2


async def test_connections_that_the_server_closed_are_not_reused() -> None:
    async with stub_and_pool() as (stub, pool):
        await asyncio.gather(*(fetched(pool, stub) for _ in range(SIZE)))
        dead = pool.connections
        stub.break_connections()
        async with asyncio.timeout(5):
            while not all(connection.has_expired() for connection in dead):
                await asyncio.sleep(0)
        assert await fetched(pool, stub) == 200
        assert not set(dead) & set(pool.connections)


async def test_dropping_idle_connections_leaves_those_in_use() -> None:
    async with stub_and_pool() as (stub, pool):
        using = await opened(pool, stub)
        await fetched(pool, stub)
        assert pool.occupancy().idle == 1
        await pool.drop_idle()
        assert (pool.occupancy().active, pool.occupancy().idle) == (1, 0)
        await using.aread()
        await using.aclose()


async def test_closing_connections_continues_when_its_caller_is_cancelled() -> None:
    async with stub_and_pool() as (stub, pool):
        await asyncio.gather(*(fetched(pool, stub) for _ in range(SIZE)))
        idle = pool.connections
        task = asyncio.create_task(pool.drop_idle())
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            while not all(connection.is_closed() for connection in idle):
                await asyncio.sleep(0)
        assert task.cancelled()


async def test_requests_queue_and_a_full_pool_times_out() -> None:
    async with stub_and_pool() as (stub, pool):
        held = await asyncio.gather(*(opened(pool, stub) for _ in range(SIZE)))
        waiting = [asyncio.create_task(fetched(pool, stub)) for _ in range(3)]
        await asyncio.sleep(0)
        assert pool.occupancy().waiting == 3
        hasty = httpcore.Request("GET", stub.base_url, extensions={"timeout": {"pool": 0.01}})
        with pytest.raises(httpcore.PoolTimeout):
            await pool.handle_async_request(hasty)
        for response in held:
            await response.aclose()
        assert await asyncio.gather(*waiting) == [200] * 3
        await still_whole(pool, stub)


class WrittenStream(httpcore.AsyncMockStream):
    def __init__(self) -> None:
        super().__init__([b"answer"] * 4)
        self.written: list[bytes] = []

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)


@pytest.mark.parametrize(
    ("parts", "sent"),
    [
        ([b"head", b"body", b""], [b"headbody", b""]),
        ([b"head", b"", b""], [b"head", b""]),
        ([b"head"], [b"head"]),
        ([b"head", b"first", b"second"], [b"headfirst", b"second"]),
        ([b"head", b"x" * (JOINED_BYTES + 1)], [b"head", b"x" * (JOINED_BYTES + 1)]),
    ],
)
async def test_the_head_of_each_request_leaves_with_its_body(parts: list[bytes], sent: list[bytes]) -> None:
    inner = WrittenStream()
    stream = JoinedWrites(inner)
    for _ in range(2):
        for part in parts:
            await stream.write(part)
        assert await stream.read(100) == b"answer"
    assert inner.written == sent * 2


async def test_a_connection_of_the_pool_writes_a_request_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = WrittenStream()
    inner._buffer = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]

    async def connected(*_: object, **__: object) -> httpcore.AsyncNetworkStream:
        return inner

    monkeypatch.setattr(AutoBackend, "connect_tcp", connected)
    async with LinearPool(None, None, SIZE, SIZE, 30.0) as pool:
        assert (await pool.request("POST", "http://stub/api/chat", content=b"{}")).content == b"ok"
    assert [part for part in inner.written if part] == [inner.written[0]]
    assert inner.written[0].endswith(b"\r\n\r\n{}")
