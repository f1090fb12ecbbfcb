"""A Redis that refuses commands, and a cluster that cannot be found: the log gives the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster
from tests.support.service import ask, make_settings, running_service

QUESTION = "How long is the warranty?"
USER, PASSWORD = "denied", "secret"


async def told(url: str, stub: StubOllama, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Returns the log lines with the reason while a worker starts and answers without Redis."""
    async with running_service(make_settings(url, stub.base_url)) as client:
        assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
        for _ in range(3):
            assert (await client.get("/health")).json()["database"] is False
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"redis_lost"' in line]


async def allow_all_but(port: int, denied: str) -> None:
    async with Redis(port=port) as client:
        rights = ("on", f">{PASSWORD}", "~*", "&*", "+@all", f"-{denied}")
        await client.execute_command("ACL", "SETUSER", USER, *rights)  # type: ignore[no-untyped-call]


async def forget(port: int) -> None:
    async with Redis(port=port) as client:
        await client.execute_command("ACL", "DELUSER", USER)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("denied", ["hget", "evalsha"])
async def test_a_user_with_too_few_rights(
    redis: Redis, redis_url: str, stub: StubOllama, capfd: pytest.CaptureFixture[str], denied: str
) -> None:
    port = int(redis_url.rpartition(":")[2])
    await allow_all_but(port, denied)
    try:
        (line,) = await told(redis_url.replace("://", f"://{USER}:{PASSWORD}@"), stub, capfd)
    finally:
        await forget(port)
    assert f"'{denied}'" in line["error"]
    assert "ragherd redis-acl" in line["message"]


@pytest.mark.parametrize(("denied", "lines"), [("cluster", 1), ("hget", 3)])
async def test_the_same_on_a_cluster(
    cluster: Cluster, stub: StubOllama, capfd: pytest.CaptureFixture[str], denied: str, lines: int
) -> None:
    for server in cluster.servers:
        await allow_all_but(server.port, denied)
    try:
        found = await told(cluster.url.replace("://", f"://{USER}:{PASSWORD}@"), stub, capfd)
    finally:
        for server in cluster.servers:
            await forget(server.port)
    assert ["ragherd redis-acl" in line["message"] for line in found] == [True] * lines


async def test_a_cluster_of_which_no_node_answers(stub: StubOllama, capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = await told("redis+cluster://127.0.0.1:1", stub, capfd)
    assert "127.0.0.1:1" in line["error"]
