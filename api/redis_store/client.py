"""Clients of Redis. Short deadlines, no hidden retries: a lost Redis must be noticed in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, and how long to wait for it (seconds)."""

    url: str
    timeout: float
    connect_timeout: float
    max_connections: int


SENTINEL: Final = "redis+sentinel"


@asynccontextmanager
async def _opened(address: RedisAddress, **options: Any) -> AsyncIterator[Redis]:
    """A client of the server, or of whichever is the primary now by the word of the Sentinels."""
    options |= {"socket_connect_timeout": address.connect_timeout, "retry": Retry(NoBackoff(), 0)}
    if urlsplit(address.url).scheme != SENTINEL:
        async with Redis.from_url(address.url, **options) as client:
            yield client
        return
    sentinels = _sentinel(address, options)
    try:
        async with sentinels.client as client:
            yield client
    finally:
        for sentinel in sentinels.watchers:
            await sentinel.aclose()


@dataclass(frozen=True, slots=True)
class _Sentinels:
    client: Redis
    watchers: list[Redis]


def _sentinel(address: RedisAddress, options: dict[str, Any]) -> _Sentinels:
    """`redis+sentinel://[user:password@]host:port,host:port/name`; the credentials are the primary's."""
    parts = urlsplit(address.url)
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    watched = {"socket_timeout": address.timeout, "socket_connect_timeout": address.connect_timeout}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, _, port in hosts], sentinel_kwargs=watched
    )
    credentials = {"username": parts.username, "password": parts.password}
    options |= {name: value for name, value in credentials.items() if value}
    client: Redis = sentinel.master_for(parts.path.strip("/"), **options)
    return _Sentinels(client, sentinel.sentinels)


@asynccontextmanager
async def short_commands(address: RedisAddress) -> AsyncIterator[Redis]:
    """A client for commands that answer at once. Replies are bytes: vectors are not text."""
    # The gate in front bounds the concurrency; the pool's own limit would raise instead of waiting.
    bound = address.max_connections * 2
    async with _opened(address, socket_timeout=address.timeout, max_connections=bound) as client:
        yield client


@asynccontextmanager
async def blocking_reader(address: RedisAddress, block_seconds: float) -> AsyncIterator[Redis]:
    """A client of its own for blocking reads of up to `block_seconds`."""
    timeout = block_seconds + address.timeout + 1.0
    async with _opened(address, socket_timeout=timeout, decode_responses=True, encoding_errors="replace") as client:
        yield client
