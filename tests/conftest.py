"""What every test may ask for: a real Redis with the search module, one a session, emptied for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One embedded Redis for the session, nothing on disk. A test that kills it starts it again (`start`)."""
    with embedded_redis(persistent=False) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's Redis, which answers."""
    redis_server.start()
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client on the session's Redis, emptied of keys and indexes before the test. Replies are bytes."""
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
        yield client
