"""Reads every key of a Redis with its value, to find out what it still knows."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis


async def everything(redis: Redis) -> dict[bytes, bytes]:
    """Returns each key with its whole value as bytes: names of fields, members and stream entries included."""
    return {key: _flat(await _value(redis, key)) async for key in redis.scan_iter(count=1000)}


async def _value(redis: Redis, key: Any) -> Any:
    kind = await redis.type(key)
    if kind == b"string":
        return await redis.get(key)
    if kind == b"hash":
        return await redis.hgetall(key)
    if kind == b"list":
        return await redis.lrange(key, 0, -1)
    if kind == b"zset":
        return await redis.zrange(key, 0, -1)
    if kind == b"stream":
        return await redis.xrange(key)
    assert kind == b"none", kind  # it has expired meanwhile
    return b""


def _flat(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"\n".join(_flat(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return b"\n".join(_flat(part) for part in value)
    return value if isinstance(value, bytes) else b""
