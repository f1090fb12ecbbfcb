"""Fixtures for every test: a real Redis with the search module, one per session, emptied before each test."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import chain
from typing import Any

import httpx
import hypothesis
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.redis_store.acl import acl_line
from api.redis_store.connections import BatchingRedis
from tests.stub_ollama import StubOllama, running_stub
from tests.support.redis_cluster import Cluster, running_cluster
from tests.support.service import Service, make_settings, running_service

# How long an example takes is the machine's affair. A person's run tries new examples every time. CI tries the same
# ones again, so that a failure there belongs to the change.
hypothesis.settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("untimed")

SECOND_TRY = ("processes", "image", "chaos", "timed")
"""Markers of tests that watch real processes or measure time, which a busy machine changes."""

LISTED_FILES = 20

USER, PASSWORD = "ragherd", "secret"
"""A user of the session's Redis with exactly the rights that `ragherd redis-acl` grants."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The summary lists each test that was run again as RERUN."""
    for item in items:
        if any(item.get_closest_marker(name) for name in SECOND_TRY):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_collection_finish() -> None:
    """Spares the garbage collector the thousands of tests, and each test its pauses."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --durations the summary also lists the slowest files, because a file is what one process runs."""
    if config.getoption("durations") is None:
        return
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.location[0]] += report.duration
    terminalreporter.section("slowest files")
    for file, duration in sorted(seconds.items(), key=lambda one: -one[1])[:LISTED_FILES]:
        terminalreporter.line(f"{duration:7.1f}s {file}")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """Runs one embedded Redis for the session, without persistence. A test that kills it restarts it with `start`."""
    least = acl_line("main", user=USER, prefix="rag:", password=PASSWORD).split()
    with embedded_redis(persistent=False, arguments=("--user", *least[1:])) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """Returns the URL of the session's Redis and restarts it if a test left it down."""
    redis_server.start()
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[BatchingRedis]:
    """Returns a worker's kind of client, of the session's Redis without keys and indexes. Replies are bytes."""
    async with BatchingRedis.from_url(redis_url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def stub() -> AsyncIterator[StubOllama]:
    """Runs a stub of Ollama in the test's event loop."""
    async with running_stub() as ollama:
        yield ollama


@pytest.fixture
async def serve(redis: Redis, redis_url: str, stub: StubOllama) -> AsyncIterator[Service]:
    """Starts the service with the given settings. Each call starts one more worker of the fleet.

    The worker has minimal rights in Redis. A test fails if the worker needs more.
    """
    await redis.acl_log_reset()
    url = f"redis://{USER}:{PASSWORD}@{redis_url.removeprefix('redis://')}"
    async with AsyncExitStack() as stack:

        async def start(**concerns: Any) -> httpx.AsyncClient:
            of_another = concerns.get("redis", {}).get("prefix", "rag:") != "rag:"
            settings = make_settings(redis_url if of_another else url, stub.base_url, **concerns)
            return await stack.enter_async_context(running_service(settings))

        yield start
    if await _answers(redis):
        denied = [(entry["reason"], entry["object"]) for entry in await redis.acl_log() if entry["username"] == USER]
        assert denied == [], "not granted by `ragherd redis-acl`: see api/redis_store/acl.py"


async def _answers(redis: Redis) -> bool:
    """Returns whether Redis answers. A previous test may have left it down."""
    try:
        return bool(await redis.ping())
    except RedisError:
        return False


# -- on a Redis Cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """Runs one three-node cluster for the session, without persistence. A test that kills a server restarts it."""
    least = acl_line("main", user=USER, prefix="rag:", password=PASSWORD, cluster=True).split()
    with running_cluster(arguments=("--user", *least[1:])) as cluster:
        yield cluster


@pytest.fixture
def cluster(redis_cluster: Cluster) -> Iterator[Cluster]:
    """Returns the session's cluster, complete and empty. Fails if the test sends a command that a cluster refuses."""
    redis_cluster.start()
    redis_cluster.flush()
    yield redis_cluster
    assert redis_cluster.refused() == {}


@pytest.fixture
async def cluster_serve(cluster: Cluster, stub: StubOllama) -> AsyncIterator[Service]:
    """Starts the service as `serve` does, on the cluster."""
    cluster.forget_denied()
    url = cluster.url.replace("://", f"://{USER}:{PASSWORD}@")
    async with AsyncExitStack() as stack:

        async def start(**concerns: Any) -> httpx.AsyncClient:
            of_another = concerns.get("redis", {}).get("prefix", "rag:") != "rag:"
            settings = make_settings(cluster.url if of_another else url, stub.base_url, **concerns)
            return await stack.enter_async_context(running_service(settings))

        yield start
    assert cluster.denied(USER) == [], "not granted by `ragherd redis-acl`: see api/redis_store/acl.py"
