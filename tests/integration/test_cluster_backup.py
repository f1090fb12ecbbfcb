"""Backups of a Redis Cluster match those of one Redis, and can be restored on either."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from api.embedded.redis_server import EmbeddedRedis
from tests.integration.test_backup import (  # noqa: F401 - the tests themselves, with the fixtures below
    QUESTION,
    Command,
    file,
    ok,
    ragherd,
    read,
    test_a_dry_run_writes_nothing,
    test_a_round_trip_into_another_prefix,
    test_an_answer_of_a_document_that_is_another_now_is_left_out,
    test_answers_age_in_the_backup_and_newer_ones_stay,
    test_deletions_travel_with_the_backup,
    test_restoring_twice_changes_nothing,
    test_where_there_are_further_documents_grounded_answers_are_stale,
)
from tests.integration.test_cluster import keys
from tests.integration.test_documents import HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster
from tests.support.service import Service, ask, make_settings, running_service

TENANTS = [f"tenant-{number}" for number in range(8)]
RING = f"one={b64encode(bytes(32)).decode()}"
"""ENCRYPTION_KEYS of the cluster."""


@pytest.fixture
def serve(cluster_serve: Service) -> Service:
    """On the cluster."""
    return cluster_serve


@pytest.fixture
def redis_url(cluster: Cluster) -> str:
    """What the command line is told."""
    return cluster.url


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[RedisCluster]:
    """A client of the cluster, by redis-py."""
    async with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster.servers[0].port)]) as client:
        yield client


@pytest.fixture
async def alone(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's one Redis, emptied."""
    redis_server.start()
    url = redis_server.url
    async with Redis.from_url(url) as client:
        await client.flushall()
    return url


async def test_from_one_redis_to_a_cluster_and_back(
    alone: str,
    cluster: Cluster,
    stub: StubOllama,
    ragherd: Command,  # noqa: F811 - a fixture
    tmp_path: Path,
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    answers = {}
    async with running_service(make_settings(alone, stub.base_url, embedder=ONNX)) as client:
        for tenant in TENANTS:
            await add(client, "Holiday policy", HOLIDAY, tenant=tenant)
            answers[tenant] = (await ask(client, QUESTION, tenant=tenant))["answer"]
    await ok(ragherd, "backup", first, REDIS_URL=alone)
    assert await ok(ragherd, "restore", first) == "documents: restored 8\nanswers: restored 8\n"
    rewritten = await ok(ragherd, "reencrypt", ENCRYPTION_KEYS=RING)
    assert rewritten.startswith("answers: rewritten 8\ndocuments: rewritten 8\npassages: rewritten ")
    await ok(ragherd, "backup", second, ENCRYPTION_KEYS=RING)
    assert len([line for line in read(second) if line["is"] == "answer"]) == 8
    assert sum(bool(of_one) for of_one in keys(cluster, "rag:cache:*").values()) > 1, "all on one shard"

    async with Redis.from_url(alone) as client:
        await client.flushall()
    assert await ok(ragherd, "restore", second, REDIS_URL=alone) == "documents: restored 8\nanswers: restored 8\n"
    asked = stub.stats["requests"]["/api/chat"]
    for url, ring in ((cluster.url, RING), (alone, "")):
        settings = make_settings(url, stub.base_url, embedder=ONNX, access={"encryption_keys": ring})
        async with running_service(settings) as client:
            for tenant, answer in answers.items():
                hit = await ask(client, QUESTION, tenant=tenant)
                assert (hit["cache"]["kind"], hit["answer"]) == ("exact", answer)
    assert stub.stats["requests"]["/api/chat"] == asked


async def test_what_is_no_cluster_is_said_in_a_line(
    alone: str,
    ragherd: Command,  # noqa: F811 - a fixture
    tmp_path: Path,
) -> None:
    url = alone.replace("redis://", "redis+cluster://")
    refused = await ragherd("backup", str(tmp_path / "none"), REDIS_URL=url)
    assert refused.exit_code == 1
    assert "this Redis is not a cluster. Use redis://." in refused.output
