"""A slot that is migrating between shards, or that no shard owns.

Partial data is never treated as complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis
from redis.crc import key_slot

from api.embedded.redis_server import EmbeddedRedis
from api.errors import StoreUnavailable
from api.redis_store.client import RedisAddress, open_client
from api.redis_store.health_gated import RedisHealthEvents
from api.redis_store.keys import Keys
from api.redis_store.stores.backup.source import AnswerReader
from api.redis_store.stores.cache.invalidation import RedisInvalidationTags
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from tests.integration.test_cluster import CACHE, QUESTION, cached, delete
from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster, running_cluster
from tests.support.service import ask, make_settings, running_service
from tests.support.waiting import wait_until_async

KEYS = Keys(cluster=True, cache_partitions=16)


@pytest.fixture(scope="module")
def shards() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
async def worker(shards: Cluster, stub: StubOllama) -> AsyncIterator[httpx.AsyncClient]:
    shards.flush()
    async with running_service(make_settings(shards.url, stub.base_url)) as client:
        yield client


@contextmanager
def on_its_way(cluster: Cluster, entry: str) -> Iterator[None]:
    """While the block runs, all of the entry's slot has moved but the notes of what was deleted; then it is back."""
    slot, source = key_slot(entry.encode()), cluster.owner(entry)
    target = next(server for server in cluster.servers if server is not source)
    with redis.Redis(port=source.port) as giving, redis.Redis(port=target.port) as taking:
        names = {client: client.execute_command("CLUSTER", "MYID") for client in (giving, taking)}
        taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[giving])
        giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[taking])
        _move(giving, target, slot, but=b"rag:invalidated:")
        try:
            yield
        finally:
            giving.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
            _move(taking, source, slot)
            taking.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")


def _move(giving: Any, target: EmbeddedRedis, slot: int, but: bytes = b"none") -> None:
    found = [key for key in giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000) if not key.startswith(but)]
    if found:
        giving.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)


async def test_a_deletion_says_that_it_can_not_be_carried_out(worker: httpx.AsyncClient, shards: Cluster) -> None:
    entry = (await ask(worker, QUESTION))["cache"]["entry"]
    assert (await worker.delete(CACHE, params={"tenant": "nobody"})).status_code == 200
    with on_its_way(shards, entry):
        for asked in ({"all": "true"}, {"entry": entry}, {"question": QUESTION}):
            assert (await worker.delete(CACHE, params=asked)).status_code == 503, asked
            assert (await worker.delete(CACHE, params=asked | {"dry_run": "true"})).status_code == 503, asked
    assert await delete(worker, all=True) == {"matched": 1, "deleted": 1}
    assert not await cached(worker, QUESTION)


async def test_neither_a_backup_nor_what_makes_answers_stale_passes_it_over(
    worker: httpx.AsyncClient, shards: Cluster
) -> None:
    entry = (await ask(worker, QUESTION))["cache"]["entry"]
    assert (await worker.delete(CACHE, params={"tenant": "nobody"})).status_code == 200
    address = RedisAddress(shards.url, timeout=5.0, connect_timeout=1.0, max_connections=4)
    async with open_client(address, lambda shard: RedisHealthEvents(), print, KEYS.probe) as gates:
        assert await gates.check()
        answers = RedisInvalidationTags(gates, KEYS, SemanticIndexes(gates, KEYS))
        with on_its_way(shards, entry):
            with pytest.raises(StoreUnavailable):
                _ = [answer async for answer in AnswerReader(gates, KEYS).all(())]
            with pytest.raises(StoreUnavailable):
                await answers.expire_all("default")
        assert await answers.expire_all("default") == 1


async def test_a_slot_that_no_shard_has_is_found_as_soon_as_one_has_it(shards: Cluster, stub: StubOllama) -> None:
    shards.flush()
    async with running_service(make_settings(shards.url, stub.base_url)) as before:
        entry = (await ask(before, QUESTION))["cache"]["entry"]
    slot, owner = key_slot(entry.encode()), shards.owner(entry)
    clients: dict[int, Any] = {server.port: redis.Redis(port=server.port) for server in shards.servers}
    for client in clients.values():
        client.execute_command("CLUSTER", "DELSLOTS", slot)
    try:
        async with running_service(make_settings(shards.url, stub.base_url)) as worker:
            assert (await ask(worker, QUESTION))["cache"]["status"] == "bypass"
            assert (await worker.get("/health")).json()["database"] is False
            clients[owner.port].execute_command("CLUSTER", "ADDSLOTS", slot)
            await wait_until_async(lambda: cached(worker, QUESTION))
            assert (await worker.get("/health")).json()["database"] is True
    finally:
        for client in clients.values():
            client.close()
