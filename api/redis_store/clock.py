"""Redis's clock, by which all times in the fleet's memory are told."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis


async def now_ms(client: Redis) -> int:
    """Milliseconds since the epoch."""
    return milliseconds(await client.time())


def milliseconds(reply: Sequence[int]) -> int:
    """The reply of TIME: seconds, and microseconds beside them."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000
