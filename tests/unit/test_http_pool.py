"""The pool loses no slot, uses the most recently used connection first, and drops dead ones. Answers in every form that
HTTP/1.1 allows are read to their end, and no further.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import UpstreamError, UpstreamFault
from api.ollama.connections import HEAD_LIMIT, UNREAD_LIMIT, HttpConnection, HttpPool, Sizes
from api.ollama.exchange import Exchange, PoolTransport, Requests
from api.ollama.pool import PoolLimits, open_pool
from api.ollama.pool_statistics import RequestTrace
from tests.stub_ollama import StubOllama, running_stub
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.slow

SIZE = 4


def pool_of(url: str, *, keepalive: int = SIZE, wait: float = 5.0) -> HttpPool:
    return HttpPool(httpx.URL(url), Sizes(SIZE, keepalive, 30.0), (wait, 5.0))


@asynccontextmanager
async def stub_and_pool(keepalive: int = SIZE) -> AsyncIterator[tuple[StubOllama, HttpPool]]:
    async with running_stub() as stub:
        pool = pool_of(stub.base_url, keepalive=keepalive)
        try:
            yield stub, pool
        finally:
            await pool.aclose()


async def opened(pool: HttpPool) -> HttpConnection:
    connection = await pool.take(RequestTrace())
    try:
        connection.send(b"GET /api/version HTTP/1.1\r\nHost: stub\r\n\r\n")
        await connection.head()
    except BaseException:
        pool.give_back(connection)
        raise
    return connection


async def read(connection: HttpConnection) -> bytes:
    parts = []
    while part := await connection.part():
        parts.append(part)
    return b"".join(parts)


async def fetched(pool: HttpPool) -> int:
    connection = await opened(pool)
    try:
        await read(connection)
    finally:
        pool.give_back(connection)
    return connection.status


async def still_whole(pool: HttpPool) -> None:
    """Checks that every slot can be used at the same time, so none was lost."""
    connections = await asyncio.gather(*(opened(pool) for _ in range(SIZE)))
    assert pool.occupancy().active == SIZE
    for connection in connections:
        pool.give_back(connection)
    assert pool.occupancy().active == 0
    assert pool.occupancy().waiting == 0


async def test_no_slot_is_lost_to_cancellations_at_any_moment() -> None:
    chance = random.Random(7)
    async with stub_and_pool() as (_, pool):

        async def churn() -> int:
            ended = 0
            for _ in range(200):
                task = asyncio.create_task(fetched(pool))
                for _ in range(chance.randrange(24)):  # cancel after this many rounds of the event loop
                    await asyncio.sleep(0)
                for _ in range(chance.randrange(1, 4)):  # cancel again during the cleanup
                    task.cancel()
                    await asyncio.sleep(0)
                await asyncio.wait([task], timeout=10)
                ended += task.done()
            return ended

        assert sum(await asyncio.gather(*(churn() for _ in range(16)))) == 16 * 200
        await still_whole(pool)


STEPS = st.lists(st.sampled_from(["open", "close", "cancel", "turn", "break"]), max_size=40)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_no_slot_is_lost_in_any_order_of_events(steps: list[str], seed: int) -> None:
    asyncio.run(_any_order(steps, random.Random(seed)))


async def _any_order(steps: list[str], chance: random.Random) -> None:
    async with stub_and_pool() as (stub, pool):
        tasks: list[asyncio.Task[HttpConnection]] = []
        for step in steps:
            if step == "open":
                tasks.append(asyncio.create_task(opened(pool)))
            elif step == "break":
                stub.break_connections()
            elif step == "turn":
                await asyncio.sleep(0)
            elif tasks:
                task = tasks.pop(chance.randrange(len(tasks)))
                if step == "cancel":
                    task.cancel()
                await _ended(pool, task)
        for task in tasks:
            task.cancel()
            await _ended(pool, task)
        await still_whole(pool)


async def _ended(pool: HttpPool, task: asyncio.Task[HttpConnection]) -> None:
    """Gives back the connection that the task took, if any."""
    if not task.done():
        await asyncio.wait([task], timeout=0.05)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        pool.give_back(task.result())


async def test_the_most_recently_used_connection_is_reused_first() -> None:
    async with stub_and_pool() as (_, pool):
        first, second, third = [await opened(pool) for _ in range(3)]
        for connection in (first, third, second):
            await read(connection)
            pool.give_back(connection)
        assert pool.connections == [first, third, second]
        assert await opened(pool) is second


async def test_no_more_idle_connections_are_kept_than_allowed() -> None:
    async with stub_and_pool(keepalive=2) as (_, pool):
        connections = await asyncio.gather(*(opened(pool) for _ in range(SIZE)))
        for connection in connections:
            await read(connection)
            pool.give_back(connection)
        assert pool.occupancy().idle == 2


async def test_connections_that_the_server_closed_are_not_reused() -> None:
    async with stub_and_pool() as (stub, pool):
        await asyncio.gather(*(fetched(pool) for _ in range(SIZE)))
        dead = pool.connections
        stub.break_connections()
        async with asyncio.timeout(5):
            while not all(not one.is_reusable or one.is_readable for one in dead):
                await asyncio.sleep(0)
        assert await fetched(pool) == 200
        assert not set(dead) & set(pool.connections)


async def test_dropping_idle_connections_leaves_those_in_use() -> None:
    async with stub_and_pool() as (_, pool):
        using = await opened(pool)
        await fetched(pool)
        assert pool.occupancy().idle == 1
        pool.drop_idle()
        assert (pool.occupancy().active, pool.occupancy().idle) == (1, 0)
        assert await read(using)
        pool.give_back(using)


async def test_requests_queue_and_a_full_pool_times_out() -> None:
    async with running_stub() as stub:
        pool = pool_of(stub.base_url, wait=0.05)
        held = await asyncio.gather(*(opened(pool) for _ in range(SIZE)))
        hasty = asyncio.create_task(fetched(pool))
        await asyncio.wait([hasty])
        assert isinstance(hasty.exception(), httpx.PoolTimeout)
        waiting = [asyncio.create_task(fetched(pool)) for _ in range(3)]
        await asyncio.sleep(0)
        assert pool.occupancy().waiting == 3
        for connection in held:
            pool.give_back(connection)
        assert await asyncio.gather(*waiting) == [200] * 3
        await still_whole(pool)
        await pool.aclose()


# -- forms of answers --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(*answers: bytes, closes: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends the answers in turn, one for each request that has come, and records what it received."""
    received: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left and (data := await reader.read(65536)):
            received.append(data)
            writer.write(left.pop(0))
            if closes:
                writer.close()
                return
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


async def exchanged(pool: HttpPool, url: str) -> bytes:
    exchange = Exchange(pool, Requests(httpx.URL(url)).post("/api/chat", b"{}"), RequestTrace(), "/api/chat", "m")
    try:
        await exchange.open()
        return await exchange.read(1 << 20)
    finally:
        exchange.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1),
        (CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 1),
        (CHUNKED + b"2;extension=1\r\nok\r\n0\r\nTrailer: 1\r\n\r\n", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 100 Continue\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\0", 0),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + CHUNKED + b"2\r\nno\r\n0\r\n\r\n", 0),
    ],
)
async def test_an_answer_is_read_to_its_end_and_no_further(answer: bytes, kept: int) -> None:
    async with answering(answer) as (url, received):
        pool = pool_of(url)
        assert await exchanged(pool, url) == b"ok"
        assert pool.occupancy().idle == kept
        assert len(received) == 1, "head and body are one write"
        await pool.aclose()


async def test_the_end_of_the_connection_ends_an_answer_without_a_length() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\nok", closes=True) as (url, _):
        pool = pool_of(url)
        assert await exchanged(pool, url) == b"ok"
        assert pool.occupancy().idle == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        CHUNKED + b"2\r\nok\r\n",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT,
    ],
)
async def test_an_answer_that_breaks_off_is_an_error(answer: bytes) -> None:
    async with answering(answer, closes=True) as (url, _):
        pool = pool_of(url)
        with pytest.raises(httpx.TransportError):
            await exchanged(pool, url)
        assert pool.occupancy() == type(pool.occupancy())(0, 0, 0)


@pytest.mark.parametrize(("begun", "is_stale"), [(b"", True), (b"HTTP/1.1 200 O", False)])
async def test_only_silence_on_a_kept_connection_means_that_it_was_stale(begun: bytes, *, is_stale: bool) -> None:
    trace = RequestTrace()
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", begun) as (url, received):
        pool = pool_of(url)
        await exchanged(pool, url)
        again = Exchange(pool, Requests(httpx.URL(url)).post("/api/chat", b"{}"), trace, "/api/chat", "m")
        waiting = asyncio.create_task(again.open())
        while len(received) < 2:
            await asyncio.sleep(0)
        pool.connections[0]._socket.shutdown(socket.SHUT_WR)  # the server then closes
        with pytest.raises(httpx.TransportError):
            await waiting
        again.close()
    assert trace.went_stale is is_stale


async def test_an_answer_that_a_proxy_has_compressed_is_decoded() -> None:
    body = gzip.compress(b"ok")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with answering(head + body) as (url, _):
        pool = pool_of(url)
        assert await exchanged(pool, url) == b"ok"
        await pool.aclose()


async def test_bytes_on_an_unused_connection_close_it() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"more") as (url, _):
        pool = pool_of(url)
        assert await exchanged(pool, url) == b"ok"
        (unused,) = pool.connections
        unused._transport.write(b"provokes an answer")

        async def gone() -> bool:
            return not pool.connections

        await wait_until_async(gone)


async def test_a_slow_reader_slows_the_server() -> None:
    whole = b"x" * (64 * UNREAD_LIMIT)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole) as (url, _):
        pool = pool_of(url)
        connection = await opened(pool)

        async def paused() -> bool:
            return not connection._transport.is_reading()

        await wait_until_async(paused)
        first = await connection.part()
        assert UNREAD_LIMIT < len(first) < 8 * UNREAD_LIMIT
        assert first + await read(connection) == whole
        pool.give_back(connection)
        assert pool.occupancy().idle == 1
        await pool.aclose()


async def test_a_head_is_all_of_the_answer_to_a_request_for_it() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n") as (url, _):
        async with httpx.AsyncClient(transport=PoolTransport(pool_of(url))) as client:
            response = await client.head(url)
        assert (response.status_code, response.content) == (200, b"")


async def test_a_server_that_answers_before_the_end_of_an_upload_is_heard() -> None:
    async with answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno") as (url, received):

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1024
                await asyncio.sleep(0)

        async with httpx.AsyncClient(transport=PoolTransport(pool_of(url))) as client:
            response = await client.post(url, content=endless())
        assert (response.status_code, response.content) == (413, b"no")
        assert b"\r\n400\r\nxxxx" in b"".join(received)


async def test_the_path_and_the_credentials_of_the_url_are_sent() -> None:
    async with answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as (url, received):
        url = url.replace("http://", "http://a%40b:c@") + "/prefix"
        async with open_pool(url, PoolLimits(min_size=0)) as pool:
            with pytest.raises(UpstreamError) as caught:
                async with pool.exchange("/api/chat", b"{}", model="m") as exchange:
                    await exchange.open()
    assert caught.value.fault is UpstreamFault.BUSY
    assert received[0].startswith(b"POST /prefix/api/chat HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Basic YUBiOmM=\r\n" in received[0]
    assert b"\r\nHost: 127.0.0.1:" in received[0]


def test_a_header_cannot_end_the_head() -> None:
    with pytest.raises(httpx.LocalProtocolError):
        Requests(httpx.URL("http://stub")).post("/api/chat", b"", "text/plain\r\nX: 1")
