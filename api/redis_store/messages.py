"""What is said on a channel of Redis, on a connection that is known to live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from api.errors import StoreUnavailable

IDLE_SECONDS: Final = 5.0
"""After so long without a message the connection is asked whether it lives."""

Reader = Callable[[float], AbstractAsyncContextManager[Redis]]
"""Opens a client of its own, for reads that block for so many seconds."""


async def messages(reader: Reader, channel: str) -> AsyncIterator[str | None]:
    """Each message; None when the channel is (again) heard. Raises `StoreUnavailable` when the connection is lost."""
    try:
        async with reader(IDLE_SECONDS) as client, client.pubsub() as subscribed:
            await subscribed.subscribe(channel)
            while True:
                message = await _next_message(subscribed)
                if message["type"] == "subscribe":
                    yield None
                elif message["type"] == "message":
                    yield message["data"]
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error)) from error


async def _next_message(subscribed: PubSub) -> dict[str, Any]:
    """The next one; a long silence is broken by a ping, whose answer is a message too. Raises `TimeoutError`."""
    message = await subscribed.get_message(timeout=IDLE_SECONDS)
    if message is None:
        await subscribed.ping()
        message = await subscribed.get_message(timeout=IDLE_SECONDS)
    if message is None:
        raise TimeoutError("Redis does not answer on the channel of messages")
    return dict(message)
