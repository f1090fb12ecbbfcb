"""A shard dies, hangs or moves a slot: the other shards keep working, and everything recovers without help."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis as blocking
from redis.asyncio import Redis
from redis.crc import key_slot

from api.embedded.redis_server import EmbeddedRedis
from api.errors import StoreUnavailable
from api.knowledge import ingestion_worker as upkeep
from api.knowledge.ingestion import ATTEMPTS
from api.redis_store.client import RedisAddress, open_client
from api.redis_store.health_gated import RedisHealthEvents
from api.redis_store.keys import Keys
from api.redis_store.scripts import scanned
from tests.integration.test_cluster import PARAPHRASE, QUESTION, cached, indexes, keys, spread, statuses
from tests.integration.test_documents import ONNX
from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster, replica, running_cluster
from tests.support.replies import raw
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.processes

KEYS = Keys(cluster=True, cache_partitions=16)
DOCUMENTS = KEYS.corpus_state
HOLIDAY = "Who approves my holiday?"
TEXT, CHANGED = "Holiday is approved by the team lead.", "Holiday is approved by the office."


async def is_hit(client: httpx.AsyncClient, tenant: str) -> bool:
    return bool((await ask(client, QUESTION, tenant=tenant))["cache"]["status"] == "hit")


# -- one dies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_what_is_on_the_living_shards_goes_on_when_one_dies(
    cluster_serve: Service, cluster: Cluster, number: int
) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    tenants = await spread(one, cluster)
    dead = cluster.servers[number]
    concerned = tenants.pop(dead.port)
    dead.kill()
    try:
        for client in (one, other, one, other):
            assert (await ask(client, QUESTION, tenant=concerned))["cache"]["status"] == "bypass"
            assert await statuses(client, tenants) == ["hit", "hit"]
        health = await one.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["database"] is False
        deleting = await one.delete("/api/semantic-cache", params={"question": QUESTION})
        assert deleting.status_code == 503, "not all of it is known to be gone"
        assert [await cached(other, QUESTION, tenant=tenant) for tenant in tenants.values()] == [False, False]
    finally:
        cluster.start()

    async def is_back() -> bool:
        return await is_hit(one, concerned) and await is_hit(other, concerned)

    await wait_until_async(is_back, timeout=15)
    assert (await one.get("/health")).json()["database"] is True
    assert (await ask(other, PARAPHRASE, tenant=concerned))["cache"]["kind"] == "semantic"


async def test_a_replica_that_takes_over_has_the_hits(stub: StubOllama) -> None:
    with running_cluster() as cluster, replica(cluster, cluster.servers[0]):
        async with running_service(make_settings(cluster.url, stub.base_url)) as client:
            tenants = await spread(client, cluster)
            concerned = tenants.pop(cluster.servers[0].port)
            with blocking.Redis(port=cluster.servers[0].port) as primary:
                assert primary.wait(1, 5000) == 1
            cluster.servers[0].kill()

            async def is_there() -> bool:
                assert await statuses(client, tenants) == ["hit", "hit"]
                (status,) = await statuses(client, {0: concerned})
                assert status in {"bypass", "hit"}
                return status == "hit"

            await wait_until_async(is_there, timeout=30)
            explained = await client.post(
                "/api/semantic-cache/explain", json={"question": PARAPHRASE, "tenant": concerned}
            )
            assert explained.json()["decision"] == "semantic_hit"
            assert (await client.get("/health")).json()["database"] is True


async def test_what_is_on_the_living_shards_goes_on_when_one_hangs(cluster_serve: Service, cluster: Cluster) -> None:
    client = await cluster_serve(redis={"timeout": 0.5})
    tenants = await spread(client, cluster)
    hung = cluster.servers[1]
    concerned = tenants.pop(hung.port)
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert (await ask(client, QUESTION, tenant=concerned))["cache"]["status"] == "bypass"
            assert await statuses(client, tenants) == ["hit", "hit"]
    finally:
        os.kill(hung.pid, signal.SIGCONT)

    async def is_back() -> bool:
        return await is_hit(client, concerned)

    await wait_until_async(is_back, timeout=15)


async def test_a_shard_that_was_lost_for_a_moment_is_found_while_another_is_dead(
    cluster_serve: Service, cluster: Cluster
) -> None:
    client = await cluster_serve(redis={"timeout": 0.5})
    tenants = await spread(client, cluster)
    home = cluster.owner(KEYS.workers)
    hung = [server for server in cluster.servers if server is not home]
    home.kill()
    try:
        for server in hung:
            concerned = tenants[server.port]
            os.kill(server.pid, signal.SIGSTOP)
            try:
                assert (await ask(client, QUESTION, tenant=concerned))["cache"]["status"] == "bypass"
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await wait_until_async(lambda tenant=concerned: is_hit(client, tenant), timeout=15)  # type: ignore[misc]
    finally:
        cluster.start()


async def test_a_worker_starts_without_the_cluster_and_finds_it(
    cluster_serve: Service, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for server in cluster.servers:
        server.kill()
    try:
        client = await cluster_serve()
        assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
        assert (await client.get("/health")).json()["database"] is False
    finally:
        cluster.start()

    async def is_there() -> bool:
        return await is_hit(client, "default")

    await wait_until_async(is_there, timeout=15)
    assert "Traceback" not in capsys.readouterr().err


# -- with data that lasts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting_cluster() -> Iterator[Cluster]:
    """One whose shards have their data again when they are started again."""
    with running_cluster(persistent=True) as cluster:
        yield cluster


@pytest.fixture
async def worker(
    lasting_cluster: Cluster, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(upkeep, "LOOK_SECONDS", 0.05)
    lasting_cluster.start()
    lasting_cluster.flush()
    async with AsyncExitStack() as stack:
        settings = make_settings(lasting_cluster.url, stub.base_url, embedder=ONNX, documents={"ingest_wait": 1.0})
        yield await stack.enter_async_context(running_service(settings))


@contextmanager
def dead(cluster: Cluster, server: EmbeddedRedis) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        cluster.start()


async def add(client: httpx.AsyncClient, tenant: str, text: str) -> httpx.Response:
    given: dict[str, Any] = {"title": "Holiday", "text": text, "source": "holiday", "tenant": tenant}
    return await client.post("/documents", json=given)


# -- a slot moves ------------------------------------------------------------------------------------------------------


async def test_a_partition_that_moves_to_another_shard_is_found_there(
    worker: httpx.AsyncClient, lasting_cluster: Cluster
) -> None:
    cluster = lasting_cluster
    entry = (await ask(worker, QUESTION))["cache"]["entry"]
    slot, source = key_slot(entry.encode()), cluster.owner(entry)
    target = next(server for server in cluster.servers if server is not source)
    try:
        moved(slot, source, target)
        assert await is_hit(worker, "default")
        assert entry in keys(cluster, "rag:cache:*")[target.port]

        async def by_meaning() -> bool:
            explained = await worker.post("/api/semantic-cache/explain", json={"question": PARAPHRASE})
            return bool(explained.json()["decision"] == "semantic_hit")

        await wait_until_async(by_meaning)
        assert any(f"index:cache:{entry[10:15]}" in name for name in await indexes(target.port))
        await worker.delete("/api/semantic-cache", params={"all": True})
        assert not await cached(worker, QUESTION)
    finally:
        moved(slot, target, source)


async def test_a_deletion_that_a_partition_moves_away_from_is_not_taken_for_whole(lasting_cluster: Cluster) -> None:
    cluster, part = lasting_cluster, KEYS.partitions[0]
    cluster.start()
    cluster.flush()
    entry = part.entry("scope", "digest")
    slot, source = key_slot(entry.encode()), cluster.owner(entry)
    target = next(server for server in cluster.servers if server is not source)
    address = RedisAddress(cluster.url, timeout=5.0, connect_timeout=1.0, max_connections=4)
    async with open_client(address, lambda shard: RedisHealthEvents(), print, KEYS.probe) as gates:
        assert await gates.check()
        gate = gates.of(entry)
        await gate.run("fill", lambda client: client.set(entry, "x"))
        assert [found async for found in scanned(gate, "scan", entry, f"{part.entries}*")] == [[entry]]

        async def moved_meanwhile() -> None:
            async for _ in scanned(gate, "scan", entry, f"{part.entries}*"):
                moved(slot, source, target)

        try:
            with pytest.raises(StoreUnavailable):
                await moved_meanwhile()
            assert [found async for found in scanned(gate, "scan", entry, f"{part.entries}*")] == [[entry]]
        finally:
            moved(slot, target, source)


def moved(slot: int, source: EmbeddedRedis, target: EmbeddedRedis) -> None:
    """As `redis-cli --cluster reshard` does it."""
    with blocking.Redis(port=source.port) as giving, blocking.Redis(port=target.port) as taking:
        names = {client: client.execute_command("CLUSTER", "MYID") for client in (giving, taking)}
        taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[giving])
        giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[taking])
        while found := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            giving.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)
        for client in (taking, giving):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[taking])


# -- documents ---------------------------------------------------------------------------------------------------------


async def test_a_change_is_not_done_before_every_shard_of_the_cache_has_been_told(
    worker: httpx.AsyncClient, lasting_cluster: Cluster
) -> None:
    away, tenant = await one_away(worker, lasting_cluster)
    await stored(worker, tenant)
    assert (await ask(worker, HOLIDAY, tenant=tenant))["sources"][0]["text"] == TEXT
    with dead(lasting_cluster, away):
        changed = await add(worker, tenant, CHANGED)
        assert (changed.status_code, changed.json()["status"]) == (202, "processing")
        place, document = changed.headers["Location"], changed.json()["id"]
        await taken_in_vain(lasting_cluster, document, times=2 * ATTEMPTS)
        assert (await worker.get(place)).json()["status"] == "processing"

    async def is_told() -> bool:
        return bool((await worker.get(place)).json()["status"] == "ready")

    await wait_until_async(is_told, timeout=30)
    assert not await cached(worker, HOLIDAY, tenant=tenant)
    assert (await ask(worker, HOLIDAY, tenant=tenant))["sources"][0]["text"] == CHANGED


async def test_a_deletion_says_that_it_is_not_done_while_a_shard_of_the_cache_is_away(
    worker: httpx.AsyncClient, lasting_cluster: Cluster
) -> None:
    away, tenant = await one_away(worker, lasting_cluster)
    document = await stored(worker, tenant)
    assert (await ask(worker, HOLIDAY, tenant=tenant))["sources"]
    with dead(lasting_cluster, away):
        assert (await worker.delete(f"/documents/{document}")).status_code == 503

    async def is_gone() -> bool:
        return not await cached(worker, HOLIDAY, tenant=tenant)

    await wait_until_async(is_gone, timeout=30)
    assert (await ask(worker, HOLIDAY, tenant=tenant))["sources"] == []


async def stored(client: httpx.AsyncClient, tenant: str) -> str:
    """A document of the tenant's that is ready, whoever has done the work."""
    added = await add(client, tenant, TEXT)

    async def is_ready() -> bool:
        return bool((await client.get(added.headers["Location"])).json()["status"] == "ready")

    await wait_until_async(is_ready)
    return str(added.json()["id"])


async def one_away(client: httpx.AsyncClient, cluster: Cluster) -> tuple[EmbeddedRedis, str]:
    """A shard that the documents are not on, and a tenant whose answers are on it."""
    tenants = await spread(client, cluster, "Who approves holidays at all?")
    away = next(server for server in cluster.servers if server is not cluster.owner(DOCUMENTS))
    return away, tenants[away.port]


async def taken_in_vain(cluster: Cluster, document: str, times: int) -> None:
    """Until workers have taken on a document so often."""
    seen: set[bytes] = set()
    async with Redis(port=cluster.owner(DOCUMENTS).port) as client:

        async def is_taken() -> bool:
            seen.add(raw(await client.hget(KEYS.document_work(document), "held_until_ms") or b""))
            return len(seen) > times

        await wait_until_async(is_taken, timeout=30)


# -- a URL of the other kind -------------------------------------------------------------------------------------------


async def test_a_url_of_the_other_kind_is_told_in_a_line(
    redis_url: str, cluster: Cluster, stub: StubOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, part = urlsplit(redis_url).netloc, f"redis://127.0.0.1:{cluster.owner(KEYS.probe).port}"
    for url, said in ((f"redis+cluster://{alone}", "Use redis://."), (part, "Use redis+cluster://.")):
        async with running_service(make_settings(url, stub.base_url)) as client:
            assert (await ask(client, QUESTION))["cache"]["status"] == "bypass"
        told = [line for line in capsys.readouterr().err.splitlines() if "redis_url_mismatch" in line]
        assert [said in line for line in told] == [True]
    cluster.flush()
