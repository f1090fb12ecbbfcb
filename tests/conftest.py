"""What every test may ask for: a real Redis with the search module, one a session, emptied for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from tests.redis_cluster import Cluster, running_cluster
from tests.service import Service, make_settings, running_service
from tests.stub_ollama import StubOllama, running_stub


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


@pytest.fixture
async def stub() -> AsyncIterator[StubOllama]:
    """A stub of Ollama in the test's own event loop, which answers unless told otherwise."""
    async with running_stub() as ollama:
        yield ollama


@pytest.fixture
async def serve(redis: Redis, redis_url: str, stub: StubOllama) -> AsyncIterator[Service]:
    """Starts the service with the settings given, as often as wanted: each is one more worker of the fleet."""
    async with AsyncExitStack() as stack:

        async def start(**concerns: Any) -> httpx.AsyncClient:
            settings = make_settings(redis_url, stub.base_url, **concerns)
            return await stack.enter_async_context(running_service(settings))

        yield start


# -- on a Redis Cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """One cluster of three for the session, nothing on disk. A test that kills a server starts it again."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(redis_cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster, whole and empty. No command of the test may be one that a cluster refuses."""
    redis_cluster.start()
    redis_cluster.flush()
    yield redis_cluster
    assert redis_cluster.refused() == {}


@pytest.fixture
async def cluster_serve(cluster: Cluster, stub: StubOllama) -> AsyncIterator[Service]:
    """The same as `serve`, on the cluster."""
    async with AsyncExitStack() as stack:

        async def start(**concerns: Any) -> httpx.AsyncClient:
            settings = make_settings(cluster.url, stub.base_url, **concerns)
            return await stack.enter_async_context(running_service(settings))

        yield start
