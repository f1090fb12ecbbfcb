"""Slow, dying and competing workers on one document: it is stored once, complete, in its latest version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis, embedded_redis
from api.errors import NotFound, ServiceUnavailable, StoreUnavailable
from api.knowledge.chunking import Chunker, estimated_tokens
from api.knowledge.document_service import OF_A_TENANT
from api.knowledge.ingestion import ATTEMPTS
from api.ports.document_store import Listing
from api.redis_store.stores.documents.document_records import owner_of
from tests.support.knowledge_worker import GatedEmbedder, Worker, lease_ended, worker
from tests.support.replies import text
from tests.support.stored_corpus import StoredCorpus, Texts

pytestmark = pytest.mark.usefixtures("redis")
OLD = "\n\n".join(f"The old rule number {number} says how the canteen is run." for number in range(12))
NEW = "\n\n".join(f"A new rule, {number}, is about parking behind the house." for number in range(9))


@pytest.fixture
def stored(redis_url: str) -> Iterator[sync_redis.Redis]:
    with sync_redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def fleet(redis: Redis, redis_url: str) -> AsyncIterator[list[Worker]]:
    """Two workers with the same embedder."""
    async with AsyncExitStack() as stack:
        opened = (worker(redis_url, name, GatedEmbedder("e")) for name in ("one", "other"))
        yield [await stack.enter_async_context(one) for one in opened]


def cut(size: int = 16, **texts: str) -> Texts:
    """What the documents become, by their sources."""
    chunker = Chunker(estimated_tokens, size, 0)
    return {source: [chunk.text for chunk in chunker.chunks(text)] for source, text in texts.items()}


def faults(client: sync_redis.Redis, expected: Texts) -> list[str]:
    return StoredCorpus(client).faults(expected)


async def test_who_is_late_writes_nothing_into_what_another_has_taken_over(
    redis: Redis, stored: sync_redis.Redis, fleet: list[Worker]
) -> None:
    late, other = fleet
    document = await late.stopped("rules", OLD)
    await lease_ended(redis, document)
    await other.knowledge.ingestion_worker.carry_out_waiting()
    assert faults(stored, cut(rules=OLD)) == []
    await other.store("rules", NEW)
    await late.go_on()
    assert faults(stored, cut(rules=NEW)) == []


async def test_who_is_taken_over_in_the_middle_leaves_nothing_of_another_cut(
    redis: Redis, redis_url: str, stored: sync_redis.Redis, fleet: list[Worker]
) -> None:
    """As while CHUNK_TOKENS is changed worker by worker: what the late one wrote and would write is cut otherwise."""
    late, _ = fleet
    document = await late.stopped("rules", OLD, after=10)
    await lease_ended(redis, document)
    async with worker(redis_url, "third", GatedEmbedder("e"), chunk_tokens=40) as third:
        third.embedder.stop_after(4)
        taking_over = asyncio.create_task(third.knowledge.ingestion_worker.carry_out_waiting())
        await third.embedder.stopped()
        await late.go_on()
        third.embedder.go_on()
        await taking_over
        assert len(cut(size=40, rules=OLD)["rules"]) < 10
        assert faults(stored, cut(size=40, rules=OLD)) == []


async def test_what_is_written_already_is_not_embedded_again(
    redis: Redis, stored: sync_redis.Redis, fleet: list[Worker]
) -> None:
    late, other = fleet
    document = await late.stopped("rules", OLD, after=6)
    await lease_ended(redis, document)
    await other.knowledge.ingestion_worker.carry_out_waiting()
    expected = cut(rules=OLD)
    assert len(other.embedder.texts) == len(expected["rules"]) - 6
    await late.go_on()
    assert faults(stored, expected) == []


async def test_a_worker_does_not_begin_twice_with_what_it_is_at(stored: sync_redis.Redis, fleet: list[Worker]) -> None:
    one, other = fleet
    await one.stopped("rules", OLD)
    for _ in range(3):
        await asyncio.wait_for(one.knowledge.ingestion_worker.carry_out_waiting(), 10)
        await asyncio.wait_for(other.knowledge.ingestion_worker.carry_out_waiting(), 10)
    await one.go_on()
    assert other.embedder.texts == []
    assert len(one.embedder.texts) == len(cut(rules=OLD)["rules"])
    assert faults(stored, cut(rules=OLD)) == []


async def test_a_document_deleted_while_it_is_stored_is_gone(redis: Redis, fleet: list[Worker]) -> None:
    one, other = fleet
    document = await one.stopped("rules", OLD)
    await other.knowledge.documents.delete(document)
    await one.go_on()
    left = {key.decode() async for key in redis.scan_iter("rag:doc:*")}
    left |= {key.decode() async for key in redis.scan_iter("rag:chunk:*")}
    assert left == set()
    assert await redis.zcard("rag:corpus:work") == 0


async def test_the_newest_of_two_texts_serves_whoever_is_done_first(
    stored: sync_redis.Redis, fleet: list[Worker]
) -> None:
    one, other = fleet
    await one.stopped("rules", OLD)
    await other.store("rules", NEW)
    await one.go_on()
    assert faults(stored, cut(rules=NEW)) == []


@pytest.mark.parametrize("texts", [(OLD, OLD), (OLD, NEW)])
async def test_one_document_given_to_two_workers_at_once_is_there_once(
    stored: sync_redis.Redis, fleet: list[Worker], texts: tuple[str, str]
) -> None:
    await asyncio.gather(*(one.store("rules", text) for one, text in zip(fleet, texts, strict=True)))
    found = [faults(stored, cut(rules=text)) for text in texts]
    assert [] in found


async def test_who_uploads_waits_for_another_worker_that_came_first(redis_url: str, fleet: list[Worker]) -> None:
    first, _ = fleet
    await first.stopped("rules", OLD)
    async with worker(redis_url, "third", GatedEmbedder("e"), ingest_wait=20.0) as third:
        uploading = third.give("rules", OLD)
        assert await asyncio.wait({uploading}, timeout=0.1) == (set(), {uploading})
        await first.go_on()
        assert (await asyncio.wait_for(uploading, 10)).document.status == "ready"
        assert third.embedder.texts == []


async def test_who_uploads_does_not_wait_for_a_turn_of_his_own_once_another_worker_is_done(
    redis_url: str, fleet: list[Worker]
) -> None:
    async with worker(redis_url, "third", GatedEmbedder("e"), ingest_wait=20.0) as third:
        third.embedder.stop_after(0)
        busy = [third.give(f"large {number}", OLD) for number in range(OF_A_TENANT)]
        await third.embedder.stopped()
        uploading = third.give("rules", NEW)
        await asyncio.wait({uploading}, timeout=0.1)
        await fleet[0].knowledge.ingestion_worker.carry_out_waiting()
        assert (await asyncio.wait_for(uploading, 5)).document.status == "ready"
        third.embedder.go_on()
        await asyncio.gather(*busy)


async def test_what_redis_forgets_in_the_middle_is_not_brought_back_by_halves(
    redis: Redis, stored: sync_redis.Redis, fleet: list[Worker]
) -> None:
    late, other = fleet
    await late.stopped("rules", OLD)
    await redis.flushall()
    await other.store("rules", NEW)
    await late.go_on()
    assert faults(stored, cut(rules=NEW)) == []


@pytest.mark.parametrize("lost", ["all data", "the document"])
async def test_who_uploads_what_is_lost_in_the_middle_is_to_store_it_again(
    redis: Redis, redis_url: str, fleet: list[Worker], lost: str
) -> None:
    async with worker(redis_url, "third", GatedEmbedder("e"), ingest_wait=20.0) as third:
        third.embedder.stop_after(0)
        uploading = third.give("rules", OLD)
        await third.embedder.stopped()
        if lost == "all data":
            await redis.flushall()
        else:
            (found,) = (await fleet[0].knowledge.documents.page("default", Listing())).documents
            await fleet[0].knowledge.documents.delete(found.id)
        third.embedder.go_on()
        with pytest.raises(ServiceUnavailable, match="Store it again") as refused:
            await asyncio.wait_for(uploading, 10)
    assert refused.value.headers["Retry-After"]


async def test_redis_killed_in_the_middle_costs_nothing_that_was_taken(tmp_path: Any) -> None:
    with embedded_redis(tmp_path / "redis", arguments=("--appendfsync", "always")) as server:
        async with worker(server.url, "one", GatedEmbedder("e")) as one:
            await one.stopped("rules", OLD)
            await _restarted(server, one)
            await one.go_on()
            await one.knowledge.ingestion_worker.carry_out_waiting()
            with sync_redis.Redis.from_url(server.url) as client:
                assert faults(client, cut(rules=OLD)) == []


async def _restarted(server: EmbeddedRedis, one: Worker) -> None:
    """Killed, seen to be gone, and there again; the lease has ended meanwhile."""
    server.kill()
    with pytest.raises(StoreUnavailable):
        await one.gate.run("ping", lambda client: client.ping())
    server.start()
    assert await one.gate.check()
    async with Redis.from_url(server.url) as client:
        (document,) = await client.zrange("rag:corpus:work", 0, -1)
        await lease_ended(client, text(document))


async def test_to_tell_the_cache_is_never_given_up(redis: Redis, fleet: list[Worker]) -> None:
    one, other = fleet
    document = await one.stopped("rules", OLD)
    await other.knowledge.documents.delete(document)
    await other.store("kept", NEW)
    work: dict[Any, Any] = {"id": document, "revision": 1, "phase": "tell", "tenant": "default"}
    await redis.hset(f"rag:doc:{document}:work", mapping={**work, "gone": 1, "attempts": 9 * ATTEMPTS})
    await redis.zadd("rag:corpus:work", {document: 1})
    await other.knowledge.ingestion_worker.carry_out_waiting()
    assert await redis.exists(f"rag:doc:{document}", f"rag:doc:{document}:work") == 0
    assert len(await other.redis.keys("rag:doc:*:chunks")) == 1


async def test_a_deletion_that_is_asked_for_again_waits_for_the_cache_to_be_told(
    redis: Redis, fleet: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client does that was answered with 503, or not at all."""
    one, other = fleet
    document = await one.store("rules", OLD)
    monkeypatch.setattr("api.knowledge.document_service.SETTLE_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(one.knowledge.documents._ingestion, "carry_out", _lost)
        with pytest.raises(StoreUnavailable):
            await one.knowledge.documents.delete(document)
    work = f"rag:doc:{document}:work"
    await redis.hset(work, "held_until_ms", str(2**45))
    with pytest.raises(ServiceUnavailable):
        await other.knowledge.documents.delete(document)
    await lease_ended(redis, document)
    await other.knowledge.documents.delete(document)
    assert await redis.exists(work) == 0
    with pytest.raises(NotFound):
        await other.knowledge.documents.delete(document)


async def _lost(_: str) -> bool:
    raise StoreUnavailable("lost")


async def test_a_change_that_the_cache_is_not_told_of_before_one_that_fails_is_told_of(
    redis: Redis, fleet: list[Worker]
) -> None:
    one, other = fleet
    document = await one.store("rules", OLD)
    entry, owner = f"rag:cache:{'a' * 10}-{'b' * 24}:{'c' * 32}", owner_of("default")
    await redis.hset(entry, mapping={"owner": owner, "created_ms": 1, "expires_ms": str(2**45)})
    await one.stopped("rules", NEW)
    work = f"rag:doc:{document}:work"
    await redis.hset(work, mapping={"owes": "1", "attempts": ATTEMPTS})
    await lease_ended(redis, document)
    await other.knowledge.ingestion_worker.carry_out_waiting()
    assert (await other.knowledge.documents.find(document)).status == "failed"
    assert int(await redis.hget(entry, "expires_ms") or 0) < 2**45
    assert await redis.hexists("rag:invalidated", "corpus:default")
    await one.go_on()


async def test_who_has_another_embedder_than_stored_a_document_tells_the_cache_of_it_in_full(
    redis: Redis, redis_url: str, fleet: list[Worker]
) -> None:
    """Its own answers do not compare with the document."""
    one, _ = fleet
    document = await one.store("rules", OLD)
    async with worker(redis_url, "further", GatedEmbedder("f")) as further:
        embedder = await further.embedder.identity()
        vector = (await further.embedder.embed(["a question"], tenant="t"))[0].vector
        entry = f"rag:cache:{embedder.fingerprint}-{'b' * 24}:{'c' * 32}"
        await redis.hset(entry, mapping={"owner": owner_of("default"), "compared": "meaning", "vector": vector})
        await redis.hset(entry, "expires_ms", str(2**45))
        left: dict[Any, Any] = {"id": document, "revision": 1, "phase": "tell", "tenant": "default"}
        await redis.hset(f"rag:doc:{document}:work", mapping=left)
        await redis.zadd("rag:corpus:work", {document: 1})
        await further.knowledge.ingestion_worker.carry_out_waiting()
    assert int(await redis.hget(entry, "expires_ms") or 0) < 2**45


async def test_an_orderly_end_is_no_failed_attempt(redis: Redis, stored: sync_redis.Redis, fleet: list[Worker]) -> None:
    one, other = fleet
    for _ in range(2 * ATTEMPTS):
        await one.stopped("rules", OLD)
        await one.knowledge.documents.aclose()
    await other.knowledge.ingestion_worker.carry_out_waiting()
    assert faults(stored, cut(rules=OLD)) == []


async def test_what_kills_every_worker_is_given_up(redis: Redis, fleet: list[Worker]) -> None:
    one, other = fleet
    document = await one.stopped("rules", OLD)
    await redis.hset(f"rag:doc:{document}:work", "attempts", ATTEMPTS)
    await lease_ended(redis, document)
    await other.knowledge.ingestion_worker.carry_out_waiting()
    found = await other.knowledge.documents.find(document)
    assert (found.status, found.error) == ("failed", f"{ATTEMPTS} workers in a row crashed while ingesting it.")
    await one.go_on()
    assert [key async for key in redis.scan_iter("rag:chunk:*")] == []


async def test_a_document_is_ready_once_the_cache_has_been_told(
    fleet: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = fleet
    document = await one.store("rules", OLD)
    telling, told = asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> None:
        telling.set()
        await told.wait()

    monkeypatch.setattr("api.knowledge.cache_invalidator.CacheInvalidator.notify_cache", lambda _, work: slow(work))
    giving = one.give("rules", NEW)
    await asyncio.wait_for(telling.wait(), 10)
    assert (await other.knowledge.documents.find(document)).status == "processing"
    told.set()
    await giving
    await one.go_on()
    assert (await other.knowledge.documents.find(document)).status == "ready"
