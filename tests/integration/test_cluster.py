"""A fleet on a Redis Cluster of three: each tenant's answers are on one shard, and no command spans two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest
import redis as blocking
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster
from tests.support.replies import texts
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION, PARAPHRASE = "How do I reset my password?", "My password, how do I reset?"
CACHE = "/api/semantic-cache"


async def spread(client: httpx.AsyncClient, cluster: Cluster, question: str = QUESTION) -> dict[int, str]:
    """A tenant with an answer on each shard: the shard's port -> the tenant."""
    found: dict[int, str] = {}
    for number in range(40):
        answered = await ask(client, question, tenant=f"tenant-{number}")
        found.setdefault(cluster.owner(answered["cache"]["entry"]).port, f"tenant-{number}")
        if len(found) == len(cluster.servers):
            return found
    raise AssertionError("no tenant's answers are on one of the shards")


async def statuses(client: httpx.AsyncClient, tenants: Mapping[int, str], question: str = QUESTION) -> list[str]:
    return [(await ask(client, question, tenant=tenant))["cache"]["status"] for tenant in tenants.values()]


async def cached(client: httpx.AsyncClient, question: str, **more: Any) -> bool:
    only = {"Cache-Control": "only-if-cached"}
    response = await client.post("/query", json={"question": question, **more}, headers=only)
    return response.status_code == 200


async def delete(client: httpx.AsyncClient, **what: Any) -> dict[str, int]:
    response = await client.delete(CACHE, params=what)
    assert response.status_code == 200, response.text
    return {name: response.json()[name] for name in ("matched", "deleted")}


def keys(cluster: Cluster, pattern: str = "*") -> dict[int, list[str]]:
    """The keys of each server, by its port."""
    found = {}
    for server in cluster.servers:
        with blocking.Redis(port=server.port, decode_responses=True) as client:
            found[server.port] = sorted(client.scan_iter(pattern))
    return found


# -- hits and misses ---------------------------------------------------------------------------------------------------


async def test_answers_of_every_shard_are_hits_on_every_worker(cluster_serve: Service, cluster: Cluster) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    tenants = await spread(one, cluster)
    assert await statuses(other, tenants) == ["hit"] * 3
    for _ in range(2):  # the second time, both look-ups go out together
        answers = [await ask(other, PARAPHRASE, tenant=tenant) for tenant in tenants.values()]
        assert [answer["cache"]["kind"] for answer in answers] == ["semantic"] * 3
    assert await statuses(other, tenants, "What is something else?") == ["miss"] * 3
    figures = (await other.get(f"{CACHE}/metrics")).json()
    assert figures["cache_size"] == sum(map(len, keys(cluster, "rag:cache:*").values()))


async def test_a_look_up_and_a_store_concern_the_shard_of_the_scope_alone(
    cluster_serve: Service, cluster: Cluster
) -> None:
    client = await cluster_serve()
    tenants = await spread(client, cluster)
    for port, tenant in tenants.items():
        before = searches(cluster)
        await ask(client, f"What does {tenant} want to know?", tenant=tenant)
        after = searches(cluster)
        assert {server for server in after if after[server] != before[server]} == {port}


def searches(cluster: Cluster) -> dict[int, int]:
    """Searches so far, by the server's port."""
    found = {}
    for server in cluster.servers:
        with blocking.Redis(port=server.port) as client:
            found[server.port] = int(client.info("commandstats").get("cmdstat_FT.SEARCH", {}).get("calls", 0))
    return found


async def test_no_tenant_has_another_s_answer(cluster_serve: Service, stub: StubOllama) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    for number in range(8):
        assert (await ask(one, QUESTION, tenant=f"tenant-{number}"))["cache"]["status"] == "miss"
        assert (await ask(other, QUESTION, tenant=f"tenant-{number}"))["cache"]["status"] == "hit"
    assert stub.stats["requests"]["/api/chat"] == 8


# -- eviction ----------------------------------------------------------------------------------------------------------


async def test_each_partition_holds_its_share_and_the_others_are_not_evicted_for_it(
    cluster_serve: Service, cluster: Cluster
) -> None:
    client = await cluster_serve(cache={"max_size": 16 * 3})
    tenants = await spread(client, cluster)
    busy, *idle = tenants.values()
    for number in range(5):
        await ask(client, f"What is question number {number} about?", tenant=busy)
    entry = (await ask(client, "What is question number 4 about?", tenant=busy))["cache"]["entry"]
    part = entry.partition("}")[0] + "}*"
    assert sum(map(len, keys(cluster, part.replace("{", "[{]").replace("}", "[}]")).values())) == 3
    assert [await cached(client, QUESTION, tenant=tenant) for tenant in idle] == [True, True]
    figures = (await client.get(f"{CACHE}/metrics")).json()
    assert (figures["evictions"], figures["max_cache_size"]) == (3, 48)


# -- deletion ----------------------------------------------------------------------------------------------------------


async def test_what_is_deleted_is_gone_on_every_shard(cluster_serve: Service, cluster: Cluster) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    tenants = await spread(one, cluster)
    first, *rest = tenants.values()
    entry = (await ask(one, QUESTION, tenant=first))["cache"]["entry"]
    held = sum(map(len, keys(cluster, "rag:cache:*").values()))

    assert await delete(other, question=QUESTION, dry_run=True) == {"matched": held, "deleted": 0}
    assert await delete(other, entry=entry) == {"matched": 1, "deleted": 1}
    assert [await cached(one, QUESTION, tenant=tenant) for tenant in (first, *rest)] == [False, True, True]
    assert await delete(other, tenant=rest[0]) == {"matched": 1, "deleted": 1}
    assert [await cached(one, QUESTION, tenant=tenant) for tenant in rest] == [False, True]
    assert await delete(other, question=PARAPHRASE, similarity=0.9) == {"matched": held - 2, "deleted": held - 2}
    assert not await cached(one, QUESTION, tenant=rest[1])

    await spread(one, cluster)
    held = sum(map(len, keys(cluster, "rag:cache:*").values()))
    assert await delete(other, all=True) == {"matched": held, "deleted": held}
    assert list(keys(cluster, "rag:cache:*").values()) == [[], [], []]


async def test_what_is_deleted_while_it_is_generated_is_not_stored_on_any_shard(
    cluster_serve: Service, cluster: Cluster, stub: StubOllama
) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    tenants = await spread(one, cluster, "What was there before?")
    stub.behaviour(delay=0.5, path="/api/chat")
    before = stub.stats["requests"]["/api/chat"]
    asking = [asyncio.create_task(ask(one, QUESTION, tenant=tenant)) for tenant in tenants.values()]

    async def generating() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] == before + 3)

    await wait_until_async(generating)
    await delete(other, all=True)
    assert [answered["cache"]["entry"] for answered in await asyncio.gather(*asking)] == [None] * 3
    assert [await cached(other, QUESTION, tenant=tenant) for tenant in tenants.values()] == [False] * 3


# -- what the fleet shares beside answers ------------------------------------------------------------------------------


async def test_equal_questions_on_two_workers_are_generated_once(cluster_serve: Service, stub: StubOllama) -> None:
    workers = [await cluster_serve(), await cluster_serve()]
    stub.behaviour(delay=0.5, path="/api/chat")
    for tenant in ("a", "b", "c", "d"):
        answers = await asyncio.gather(*(ask(worker, QUESTION, tenant=tenant) for worker in workers * 2))
        assert sorted(answer["cache"]["status"] for answer in answers) == ["coalesced"] * 3 + ["miss"]
    assert stub.stats["requests"]["/api/chat"] == 4


async def test_a_breaker_that_opens_on_one_worker_is_open_on_all(cluster_serve: Service, stub: StubOllama) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    stub.behaviour("status", status=500)
    for number in range(5):
        await one.post("/query", json={"question": f"Does number {number} fail?"})

    async def is_open() -> bool:
        response = await other.post("/query", json={"question": "Is it open?"})
        return response.status_code == 503 and "Retry-After" in response.headers

    await wait_until_async(is_open)


async def test_a_drained_backend_is_drained_on_all(cluster_serve: Service, stub: StubOllama) -> None:
    second = stub.base_url.replace("127.0.0.1", "localhost")
    urls = {"ollama_base_url": f"{stub.base_url},{second}"}
    one, other = await cluster_serve(ollama=urls), await cluster_serve(ollama=urls)

    async def drained() -> list[bool]:
        return [backend["drained"] for backend in (await other.get("/api/backends")).json()["backends"]]

    for action, expected in (("drain", [False, True]), ("resume", [False, False])):
        assert (await one.post(f"/api/backends/ollama-2/{action}")).status_code == 200
        await wait_until_async(lambda expected=expected: is_so(drained, expected))  # type: ignore[misc]


async def is_so(found: Callable[[], Awaitable[object]], expected: object) -> bool:
    return await found() == expected


async def test_every_worker_is_known_to_the_fleet(cluster_serve: Service) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    workers = [(await client.get("/health")).json()["worker"] for client in (one, other)]
    assert set((await one.get("/api/connection-pool/metrics")).json()["workers"]) == set(workers)


async def test_a_follow_up_is_rewritten_once_for_all(cluster_serve: Service, stub: StubOllama) -> None:
    one, other = [await cluster_serve(cache={"condense": True}) for _ in range(2)]
    history = [{"role": "user", "content": "How do I reset my password?"}, {"role": "assistant", "content": "So."}]
    for client in (one, other):
        await ask(client, "And for my colleague?", history=history)
    assert stub.stats["requests"]["/api/chat"] == 2  # the rewriting, and the answer


async def test_a_warm_up_fills_every_shard(cluster_serve: Service, cluster: Cluster) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    lines = "\n".join(f'{{"question": "{QUESTION}", "tenant": "tenant-{number}"}}' for number in range(12))
    headers = {"Content-Type": "application/jsonl"}
    begun = await one.post(f"{CACHE}/warm", content=lines, headers=headers)
    assert begun.status_code == 202, begun.text

    async def is_done() -> bool:
        return bool((await other.get(begun.headers["Location"])).json()["status"] == "done")

    await wait_until_async(is_done)
    assert [await cached(other, QUESTION, tenant=f"tenant-{number}") for number in range(12)] == [True] * 12
    assert all(keys(cluster, "rag:cache:*").values())


# -- indexes -----------------------------------------------------------------------------------------------------------


async def test_every_partition_has_an_index_of_its_own_on_its_shard(cluster_serve: Service, cluster: Cluster) -> None:
    client = await cluster_serve()
    await ask(client, QUESTION)
    for server in cluster.servers:
        names = await indexes(server.port)
        assert names
        assert {cluster.owner(name).port for name in names} == {server.port}
    assert sum([len(await indexes(server.port)) for server in cluster.servers]) == 16


async def test_an_index_that_is_lost_is_made_again_without_traffic(cluster_serve: Service, cluster: Cluster) -> None:
    client = await cluster_serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    server = cluster.owner(entry)
    before = await indexes(server.port)
    async with Redis(port=server.port) as direct:
        for name in before:
            await direct.execute_command("FT.DROPINDEX", name)  # type: ignore[no-untyped-call]

    async def are_back() -> bool:
        return await indexes(server.port) == before

    await wait_until_async(are_back, timeout=15)
    assert (await ask(client, PARAPHRASE))["cache"]["kind"] == "semantic"


async def indexes(port: int) -> set[str]:
    """The cache's indexes on one server."""
    async with Redis(port=port) as direct:
        names = texts(await direct.execute_command("FT._LIST"))  # type: ignore[no-untyped-call]
    return {name for name in names if name.startswith("rag:index:cache:")}


# -- nothing of it is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 5])
async def test_no_operation_fails_whatever_the_number_of_partitions(
    cluster_serve: Service, cluster: Cluster, partitions: int
) -> None:
    client = await cluster_serve(partitions={"cache_partitions": partitions})
    await ask(client, QUESTION)
    assert (await ask(client, PARAPHRASE))["cache"]["kind"] == "semantic"
    await client.post("/documents", json={"title": "T", "text": "Passwords are reset by the office.", "source": "s"})
    await client.post("/documents", json={"title": "T", "text": "Passwords are reset by hand.", "source": "s"})
    await delete(client, all=True)
    await ask(client, QUESTION, history=[{"role": "user", "content": "Hello."}])
    await client.get("/api/circuit-breaker/history")
    text = (await client.get("/metrics")).text
    assert [line for line in text.splitlines() if line.startswith("ragherd_redis_errors_total{")] == []
    assert "ragherd_redis_shards_up 3.0" in text


async def test_one_redis_may_have_partitions_too(serve: Service, redis: Redis) -> None:
    one, other = [await serve(partitions={"cache_partitions": 4}) for _ in range(2)]
    for number in range(6):
        await ask(one, QUESTION, tenant=f"tenant-{number}")
        assert (await ask(other, PARAPHRASE, tenant=f"tenant-{number}"))["cache"]["kind"] == "semantic"
    entries = texts(await redis.keys("rag:cache:*"))
    assert len(entries) == 6
    assert len({entry.partition("}")[0] for entry in entries}) > 1
    assert await delete(other, tenant="tenant-3") == {"matched": 1, "deleted": 1}
    assert await delete(other, all=True) == {"matched": 5, "deleted": 5}
    given = {"title": "T", "text": "Passwords are reset by the office.", "source": "s"}
    assert (await one.post("/documents", json=given)).status_code == 201
    assert await redis.keys("rag:doc:[0-9a-f]*"), "the names of documents stay as they are"
