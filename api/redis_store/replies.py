"""Replies to many commands at once, some of which may be refused."""

from __future__ import annotations

from typing import Any

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError


async def replies_of(pipe: Pipeline) -> list[Any]:
    """In their order; a refusal, of a key of another type say, stands in the place of its reply.

    Raises what is more than that: another shard is to be asked, none can be, or the slot is on its way between two.
    """
    replies: list[Any] = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, RedisError) and type(reply) is not ResponseError:
            raise reply
    return replies
