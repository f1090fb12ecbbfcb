"""Commands of one round of the event loop leave in one write, and each caller gets its own reply or error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.connections import BatchingRedis
from tests.support.round_trips import round_trips


def address(url: str) -> RedisAddress:
    return RedisAddress(url, timeout=5.0, connect_timeout=1.0, max_connections=4)


async def run(client: Redis, *command: str | int) -> Any:
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.fixture
async def client(redis: Redis, redis_url: str) -> AsyncIterator[BatchingRedis]:
    await redis.flushall()
    async with short_commands(address(redis_url)) as client:
        await client.ping()  # opens the connection
        yield client


async def test_commands_of_one_round_are_one_write(client: Redis) -> None:
    with round_trips() as written:
        commands = (client.set("a", 1), client.incr("a"), client.get("a"), client.hgetall("none"))
        replies: list[object] = list(await asyncio.gather(*commands))
    assert replies == [True, 2, b"2", {}]
    assert written == ["SET + INCRBY + GET + HGETALL"]


async def test_commands_of_one_caller_leave_together(client: BatchingRedis) -> None:
    await client.set("text", "x")
    sent = client.execute_together([("GET", "text"), ("INCR", "text"), ("GET", "none")])
    with round_trips() as written:
        (before, refused, after), other = await asyncio.gather(sent, client.get("text"))
    assert (before, after, other) == (b"x", None, b"x")
    assert isinstance(refused, ResponseError)
    assert written == ["GET + INCR + GET + GET"]


async def test_a_refused_command_fails_alone(client: Redis) -> None:
    await client.set("text", "x")
    before, refused, after = await asyncio.gather(
        client.get("text"), client.incr("text"), client.get("text"), return_exceptions=True
    )
    assert (before, after) == (b"x", b"x")
    assert isinstance(refused, ResponseError)


async def test_a_search_lets_the_others_go_first(client: Redis) -> None:
    with round_trips() as written:
        await asyncio.gather(run(client, "FT._LIST"), client.get("a"))
    assert written == ["GET + FT._LIST"]


async def test_a_caller_that_leaves_lets_its_command_run(client: Redis) -> None:
    leaving = asyncio.create_task(run(client, "SET", "a", 1))
    staying = asyncio.create_task(run(client, "GET", "a"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"1"
    assert leaving.cancelled()


async def test_a_lost_connection_fails_the_batch_and_the_next_one_connects_again(client: Redis, redis: Redis) -> None:
    own = await client.client_id()
    blocked = [asyncio.create_task(run(client, "BLPOP", "none", 0)), asyncio.create_task(run(client, "GET", "a"))]
    while "blpop" not in str(await redis.client_list(client_id=[own])):
        await asyncio.sleep(0)
    await redis.client_kill_filter(_id=str(own))
    ends = await asyncio.gather(*blocked, return_exceptions=True)
    assert [type(end) for end in ends] == [RedisConnectionError] * 2
    assert await client.ping()


async def test_a_reply_that_cannot_be_parsed_fails_alone(client: Redis) -> None:
    def refuse(response: Any, **_: Any) -> None:
        raise ValueError(f"{response!r} is not what it should be")

    client.set_response_callback("ECHO", refuse)
    own = await client.client_id()
    ends = await asyncio.gather(client.incr("a"), run(client, "ECHO", "x"), client.incr("a"), return_exceptions=True)
    assert [ends[0], type(ends[1]), ends[2]] == [1, ValueError, 2]
    assert await client.client_id() == own, "the connection is in order"


@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_closing_ends_what_is_being_sent(client: Redis, rounds: int) -> None:
    blocked = asyncio.create_task(run(client, "BLPOP", "none", 0))
    for _ in range(rounds):
        await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(blocked, 5)
    assert await asyncio.wait_for(client.ping(), 5), "it opens again, as redis-py does"


async def test_batches_share_senders_which_end_with_the_client(client: BatchingRedis) -> None:
    before = set(client._sending)
    for _ in range(3):
        await client.ping()
    assert len(before) == 1
    assert client._sending == before
    blocked = asyncio.create_task(run(client, "BLPOP", "none", "0.1"))
    await asyncio.sleep(0)
    await asyncio.gather(client.ping(), blocked)
    assert len(client._sending) == 2, "one waits for Redis while another sends"
    await client.aclose()
    assert not client._sending


async def test_another_sender_takes_what_a_cancelled_one_was_woken_for(client: BatchingRedis) -> None:
    (sender,) = client._sending
    reply = asyncio.ensure_future(run(client, "PING"))
    await asyncio.sleep(0)  # it is woken, and has not run yet
    sender.cancel()
    async with asyncio.timeout(5):
        assert await reply is True
    assert sender not in client._sending


async def test_senders_and_connections_that_nothing_needs_are_closed(
    client: BatchingRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def own_connections() -> int:
        return sum(one["name"] == "spare" for one in await redis.client_list())

    async def run_at_once(number: int) -> None:
        blocked = []
        for _ in range(number):
            blocked.append(asyncio.create_task(run(client, "BLPOP", "none", "0.1")))
            await asyncio.sleep(0)
        await asyncio.gather(*blocked)

    client.connection_pool.connection_kwargs["client_name"] = "spare"
    await client.connection_pool.disconnect()
    client.connection_pool.reset()  # type: ignore[no-untyped-call]
    await run_at_once(6)
    assert (await own_connections(), len(client._sending)) == (6, 6)

    def window_ends() -> None:
        monkeypatch.setattr(client, "_next_check", 0.0)

    window_ends()
    await client.ping()  # all six were needed in the window that ends here
    assert (await own_connections(), len(client._sending)) == (6, 6)
    await run_at_once(2)
    window_ends()
    await client.ping()  # in this one, two
    async with asyncio.timeout(5):
        while (await own_connections(), len(client._sending)) != (2, 2):
            await asyncio.sleep(0)
    await run_at_once(3)
    assert (await own_connections(), len(client._sending)) == (3, 3), "they come back when they are needed"
