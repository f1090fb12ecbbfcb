"""A Redis Cluster under TLS, for breakers only, of another version, and with diagnostics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import redis as blocking
from redis.asyncio import Redis

from api.redis_store.acl import acl_line
from api.redis_store.client import RedisAddress, open_client
from api.redis_store.diagnostics import RedisCheckup
from api.redis_store.health_gated import RedisHealthEvents
from api.redis_store.keys import Keys
from api.redis_store.schema import SCHEMA
from tests.conftest import PASSWORD
from tests.integration.test_cluster import QUESTION, keys
from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.tls_proxy import Certificates, certificates, tls_proxy
from tests.support.waiting import wait_until, wait_until_async

KEYS = Keys(cache_partitions=16, cluster=True)


async def database(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health")).json()["database"])


# -- TLS ---------------------------------------------------------------------------------------------------------------


def announced(cluster: Cluster, ports: list[int]) -> None:
    """Every node names these ports to clients, in the order of the servers; 0: the server's own."""
    for server, port in zip(cluster.servers, ports, strict=True):
        with blocking.Redis(port=server.port) as client:
            client.config_set("cluster-announce-port", port)
    wanted = sorted(port or server.port for server, port in zip(cluster.servers, ports, strict=True))
    for server in cluster.servers:
        with blocking.Redis(port=server.port) as client:
            wait_until(lambda: sorted(one[2][1] for one in client.execute_command("CLUSTER", "SLOTS")) == wanted)


@pytest.fixture
def under_tls(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Certificates, list[int]]]:
    """A proxy in front of each server, which is what the cluster sends clients to."""
    with ExitStack() as stack:
        held, ports = certificates(tmp_path / "tls", "127.0.0.1"), []
        for number, server in enumerate(cluster.servers):
            folder = certificates_for(held, tmp_path / f"proxy-{number}")
            ports.append(stack.enter_context(tls_proxy(folder, server.port)).port)
        announced(cluster, ports)
        try:
            yield held, ports
        finally:
            announced(cluster, [0, 0, 0])


def certificates_for(held: Certificates, folder: Path) -> Path:
    """The same files in a folder of its own: haproxy has its configuration there."""
    folder.mkdir()
    for name in ("server.pem", "ca.pem"):
        (folder / name).write_bytes((held.folder / name).read_bytes())
    return folder


async def test_all_connections_to_a_cluster_are_under_tls(
    under_tls: tuple[Certificates, list[int]], stub: StubOllama
) -> None:
    held, ports = under_tls
    files = {"ca_file": str(held.ca), "cert_file": str(held.pair), "connect_timeout": 2.0, "timeout": 2.0}
    settings = make_settings(f"rediss+cluster://127.0.0.1:{ports[0]}", stub.base_url, redis=files)
    async with running_service(settings) as client:
        assert await database(client)
        assert [(await ask(client, QUESTION, tenant=str(n)))["cache"]["status"] for n in range(6)] == ["miss"] * 6
        assert [(await ask(client, QUESTION, tenant=str(n)))["cache"]["status"] for n in range(6)] == ["hit"] * 6
        assert (await client.get("/api/circuit-breaker/metrics")).json()["store"] == "shared"


# -- breakers on a cluster, the rest on one Redis ----------------------------------------------------------------------


async def test_breakers_may_be_on_a_cluster_of_their_own(
    cluster: Cluster, redis: Redis, redis_url: str, stub: StubOllama
) -> None:
    with user_of_breakers(cluster):
        url = cluster.url.replace("://", f"://guard:{PASSWORD}@")
        async with running_service(make_settings(redis_url, stub.base_url, breaker_redis={"url": url})) as client:
            await ask(client, QUESTION)

            async def is_counted() -> bool:
                return int((await client.get("/api/circuit-breaker/metrics")).json()["total_calls"]) > 0

            await wait_until_async(is_counted)
            kept = {key for of_one in keys(cluster).values() for key in of_one}
            assert {key.split(":")[1] for key in kept} == {"cb", "bulkhead"}
            assert not [key async for key in redis.scan_iter("rag:cb:*")]
            state = KEYS.breaker("ollama")[0]
            cluster.owner(state).kill()
            try:
                await wait_until_async(lambda: breakers_are(client, "local"))
                health = (await client.get("/health")).json()
                told = (health["status"], health["database"], health["breaker_database"])
                assert told == ("degraded", True, False)
                assert (await ask(client, QUESTION))["cache"]["status"] == "hit"
            finally:
                cluster.start()
            with user_of_breakers(cluster):  # a server that was started again knows none that was made at run time
                await wait_until_async(lambda: breakers_are(client, "shared"), timeout=15)
    assert [denied for denied in cluster.denied("guard") if denied != "AUTH"] == []


async def breakers_are(client: httpx.AsyncClient, store: str) -> bool:
    return bool((await client.get("/api/circuit-breaker/metrics")).json()["store"] == store)


@contextmanager
def user_of_breakers(cluster: Cluster) -> Iterator[None]:
    least = acl_line("breaker", user="guard", prefix="rag:", password=PASSWORD, cluster=True).split()
    for server in cluster.servers:
        with blocking.Redis(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", *least[1:])
            client.acl_log_reset()
    yield


# -- which release the keys are of -------------------------------------------------------------------------------------


@pytest.fixture
async def newer(cluster: Cluster) -> AsyncIterator[blocking.Redis]:
    """The shard with the schema, which is one of a later release."""
    with blocking.Redis(port=cluster.owner(KEYS.corpus_schema).port) as client:
        client.hset(KEYS.corpus_schema, "version", "9.0")
        yield client


async def test_keys_of_a_later_release_are_left_alone_on_every_shard(
    newer: blocking.Redis, cluster: Cluster, cluster_serve: Service
) -> None:
    client = await cluster_serve()
    assert not await database(client)
    statuses = {(await ask(client, QUESTION, tenant=str(number)))["cache"]["status"] for number in range(6)}
    assert statuses == {"bypass"}
    assert {key for of_one in keys(cluster).values() for key in of_one} == {KEYS.corpus_schema}
    newer.delete(KEYS.corpus_schema)
    await wait_until_async(lambda: database(client), timeout=15)
    assert newer.hget(KEYS.corpus_schema, "version") == str(SCHEMA).encode()


async def test_who_worked_with_the_keys_leaves_them_when_a_later_release_has_them(
    cluster: Cluster, cluster_serve: Service
) -> None:
    client = await cluster_serve()
    await wait_until_async(lambda: database(client))
    with blocking.Redis(port=cluster.owner(KEYS.corpus_schema).port) as shard:
        shard.hset(KEYS.corpus_schema, "version", "9.0")

    async def is_left_alone() -> bool:
        found = [(await ask(client, QUESTION, tenant=str(number)))["cache"]["status"] for number in range(6)]
        return found == ["bypass"] * 6

    await wait_until_async(is_left_alone, timeout=15)


async def test_who_starts_while_the_schema_can_not_be_asked_waits_for_it(
    cluster: Cluster, cluster_serve: Service
) -> None:
    cluster.owner(KEYS.corpus_schema).kill()
    try:
        client = await cluster_serve()
        found = {(await ask(client, QUESTION, tenant=str(number)))["cache"]["status"] for number in range(6)}
        assert found == {"bypass"}
    finally:
        cluster.start()
    await wait_until_async(lambda: database(client), timeout=15)


# -- how it is set up --------------------------------------------------------------------------------------------------


async def test_a_warning_that_one_shard_gives_cause_for_is_told_once(cluster: Cluster) -> None:
    address = RedisAddress(cluster.url, timeout=5.0, connect_timeout=1.0, max_connections=4)
    heard: list[tuple[str, bool]] = []
    async with open_client(address, lambda shard: RedisHealthEvents(), print, KEYS.probe) as gate:
        checkup = RedisCheckup(gate, "main", lambda warning, begins: heard.append((warning.name, begins)))
        assert await gate.check()
        assert heard == [("not_persistent", True)], "of three servers that keep nothing"
        for policy, said in (("allkeys-lru", True), ("noeviction", False)):
            with blocking.Redis(port=cluster.servers[2].port) as client:
                client.config_set("maxmemory-policy", policy)
            await checkup.look()
            assert heard.pop() == ("evicts_all", said)
            assert len(heard) == 1
            assert ("evicts_all" in [one.name for one in checkup.warnings]) is said
