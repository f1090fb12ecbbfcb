"""Clients of Redis. Short deadlines, no hidden retries: a lost Redis must be noticed in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, and how long to wait for it (seconds)."""

    url: str
    timeout: float
    connect_timeout: float
    max_connections: int


@asynccontextmanager
async def short_commands(address: RedisAddress) -> AsyncIterator[Redis]:
    """A client for commands that answer at once. Replies are bytes: vectors are not text."""
    # The gate in front bounds the concurrency; the pool's own limit would raise instead of waiting.
    client = Redis.from_url(
        address.url,
        socket_timeout=address.timeout,
        socket_connect_timeout=address.connect_timeout,
        max_connections=address.max_connections * 2,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def blocking_reader(address: RedisAddress, block_seconds: float) -> AsyncIterator[Redis]:
    """A client of its own for blocking reads of up to `block_seconds`."""
    client = Redis.from_url(
        address.url,
        socket_timeout=block_seconds + address.timeout + 1.0,
        socket_connect_timeout=address.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    try:
        yield client
    finally:
        await client.aclose()
