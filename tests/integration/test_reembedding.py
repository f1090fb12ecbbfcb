"""The embedder changes while the service runs: old and new workers both find every document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from api.knowledge.retrieval import PassageQuery, Retrieved
from api.ports.document_store import Listing
from tests.integration.test_document_races import NEW, OLD, cut
from tests.support.knowledge_worker import GatedEmbedder, Worker, worker
from tests.support.stored_corpus import StoredChunk, StoredCorpus

pytestmark = pytest.mark.usefixtures("redis")
THIRD = "Bicycles are kept in the cellar."


@pytest.fixture
def stored(redis_url: str) -> Iterator[sync_redis.Redis]:
    with sync_redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def before(redis: Redis, redis_url: str) -> AsyncIterator[Worker]:
    """A worker with the old embedder, and two documents."""
    async with worker(redis_url, "before", GatedEmbedder("before")) as opened:
        await opened.store("rules", OLD)
        await opened.store("parking", NEW)
        yield opened


@pytest.fixture
async def after(before: Worker, redis_url: str) -> AsyncIterator[Worker]:
    """A worker with the new embedder."""
    async with worker(redis_url, "after", GatedEmbedder("after")) as opened:
        yield opened


def chunks_of(client: sync_redis.Redis, one: Worker) -> list[StoredChunk]:
    mine = one.embedder.embedder.fingerprint
    return [chunk for chunk in StoredCorpus(client).chunks if chunk.embedder == mine]


async def found(one: Worker, question: str) -> Retrieved:
    return await one.knowledge.retriever.retrieve(PassageQuery(question, "default", 4))


def sources(retrieved: Retrieved) -> set[str | None]:
    return {source.source for source in retrieved.sources}


def faults(client: sync_redis.Redis, embedders: int = 2, **texts: Any) -> list[str]:
    return StoredCorpus(client).faults(cut(**texts), embedders)


async def test_documents_are_found_by_their_words_until_they_are_embedded_anew(
    stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    await after.store("bicycles", THIRD)
    for question, source in (("How is the canteen run?", "rules"), ("Who is parking?", "parking")):
        by_words = await found(after, question)
        assert (source in sources(by_words), by_words.complete) == (True, False)
    assert "bicycles" in sources(await found(before, "Where are bicycles kept?"))
    await after.knowledge.ingestion_worker.reembed()
    await before.knowledge.ingestion_worker.reembed()
    for one in (before, after):
        assert (await found(one, "How is the canteen run?")).complete
        assert "rules" in sources(await found(one, "How is the canteen run?"))
    assert faults(stored, rules=OLD, parking=NEW, bicycles=THIRD) == []


async def test_the_embedder_of_before_serves_as_it_did_while_another_is_at_it(
    stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    asked = "How is the canteen run?"
    as_before = await found(before, asked)
    embedding = await stopped_anew(after)
    assert (await found(before, asked)) == as_before
    assert as_before.complete
    after.embedder.go_on()
    await embedding
    assert (await found(before, asked)) == as_before
    assert faults(stored, rules=OLD, parking=NEW) == []


async def test_workers_of_both_embedders_take_documents_all_the_while(
    stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    texts: dict[str, Any] = {
        f"page{number}": f"Page {number} is about {number} things.\n\n{OLD}" for number in range(8)
    }
    tasks = [asyncio.create_task(one.knowledge.ingestion_worker.reembed()) for one in (before, after)]
    for number, (source, text) in enumerate(texts.items()):
        await (before, after)[number % 2].store(source, text)
    await asyncio.gather(*tasks)
    for _ in range(2):  # what came while they looked
        for one in (before, after):
            await one.knowledge.ingestion_worker.reembed()
    assert faults(stored, rules=OLD, parking=NEW, **texts) == []
    for one in (before, after):
        assert (await found(one, "Which page is about 3 things?")).complete


async def test_a_document_deleted_while_it_is_embedded_anew_leaves_nothing(
    stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    embedding = await stopped_anew(after)
    for fields in StoredCorpus(stored).documents.values():
        await before.knowledge.documents.delete(fields["id"])
    after.embedder.go_on()
    await embedding
    await after.knowledge.ingestion_worker.reembed()
    left = StoredCorpus(stored)
    assert (left.documents, left.chunks, left.unfinished) == ({}, [], [])


async def test_a_document_replaced_while_it_is_embedded_anew_is_the_new_one_for_both(
    stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    embedding = await stopped_anew(after)
    await before.store("rules", THIRD)
    await before.store("parking", OLD)
    after.embedder.go_on()
    await embedding
    await after.knowledge.ingestion_worker.reembed()
    assert faults(stored, rules=THIRD, parking=OLD) == []


async def test_one_worker_of_the_new_embedder_does_it_for_all(
    redis_url: str, stored: sync_redis.Redis, after: Worker
) -> None:
    embedding = await stopped_anew(after)
    async with worker(redis_url, "idle", GatedEmbedder("after")) as idle:
        await idle.knowledge.ingestion_worker.reembed()
        assert idle.embedder.texts == []
        after.embedder.go_on()
        await embedding
    assert faults(stored, rules=OLD, parking=NEW) == []


async def test_who_stood_still_for_too_long_leaves_it_to_who_has_the_duty_now(
    redis: Redis, redis_url: str, stored: sync_redis.Redis, after: Worker
) -> None:
    embedding = await stopped_anew(after)
    lease = f"rag:embedding:{after.embedder.embedder.fingerprint}"
    await redis.delete(lease)
    # Of other sizes: what the late one still writes would be a chunk too many.
    async with worker(redis_url, "other", GatedEmbedder("after"), chunk_tokens=40) as other:
        await other.knowledge.ingestion_worker.reembed()
        written = chunks_of(stored, after)
        after.embedder.go_on()
        await embedding
    assert chunks_of(stored, after) == written
    assert {one.number for one in written if one.text in OLD} == set(range(len(cut(40, rules=OLD)["rules"])))


async def test_what_redis_forgot_meanwhile_is_not_taken_for_embedded(
    redis: Redis, stored: sync_redis.Redis, before: Worker, after: Worker
) -> None:
    embedding = await stopped_anew(after)
    await redis.flushall()
    await redis.set(f"rag:embedding:{after.embedder.embedder.fingerprint}", "after")  # as it is renewed meanwhile
    texts: dict[str, Any] = {"rules": NEW, "parking": OLD, "bicycles": THIRD}
    for source, text in texts.items():
        await before.store(source, text)
    after.embedder.go_on()
    await embedding
    assert not (await found(after, "Where are bicycles kept?")).complete
    await after.knowledge.ingestion_worker.reembed()
    assert (await found(after, "Where are bicycles kept?")).complete
    assert faults(stored, **texts) == []


async def test_passages_of_a_document_are_those_of_one_embedder(
    redis_url: str, stored: sync_redis.Redis, before: Worker
) -> None:
    async with worker(redis_url, "after", GatedEmbedder("after"), chunk_tokens=40) as after:
        await after.knowledge.ingestion_worker.reembed()
        for one in (before, after):
            page = await one.knowledge.documents.page("default", Listing())
            for document in page.documents:
                shown = await one.knowledge.documents.chunks(document.id, 0, 100)
                assert [chunk.text for chunk in shown] in list(cut(rules=OLD, parking=NEW).values())
                assert document.chunks == len(shown)


async def stopped_anew(one: Worker) -> asyncio.Task[None]:
    """Starts to embed all documents again, and pauses in the middle of the first one."""
    one.embedder.stop_after(2)
    embedding = asyncio.create_task(one.knowledge.ingestion_worker.reembed())
    await one.embedder.stopped()
    return embedding
