"""Two releases on one Redis: the newer one writes unknown fields, or keys of another schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api.knowledge.kinds import KINDS, MARKDOWN
from api.ports.document_store import DocumentFacts, Draft
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.schema import ENCRYPTED, SCHEMA, FleetSchema, Schema, SchemaConflict
from api.redis_store.stores.documents.document_records import RedisDocuments
from api.redis_store.stores.documents.embeddings import RedisReembedding
from api.redis_store.stores.documents.work import RedisDocumentWork
from api.redis_store.stores.fleet import WorkerRegistry
from api.values import EmbedderIdentity
from tests.integration.test_documents import HOLIDAY, ONNX, add
from tests.integration.test_passage_languages import HOUSES
from tests.stub_ollama import StubOllama
from tests.support.replies import fields, raw, text
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async
from tests.unit.test_parsing import archive

KEYS = Keys()
NEXT = Schema(ENCRYPTED.major + 1, 0)
FURTHER = Schema(SCHEMA.major, SCHEMA.minor + 1)
QUESTION, PARAPHRASE = "How do I reset my password?", "My password, how do I reset?"


@asynccontextmanager
async def opened(
    url: str, own: Schema, name: str = "w", said: Callable[[str], None] = lambda conflict: None
) -> AsyncIterator[tuple[HealthGatedRedis, FleetSchema]]:
    """A gate as a worker of that schema has it, not checked yet."""
    async with short_commands(RedisAddress(url, timeout=5.0, connect_timeout=1.0, max_connections=8)) as client:
        gate = HealthGatedRedis(client, 8)
        yield gate, FleetSchema(gate, KEYS, name, "9.9.9", said, own)


async def version(redis: Redis) -> str | None:
    found = await redis.hget(KEYS.corpus_schema, "version")
    return text(found) if found else None


async def database(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health")).json()["database"])


# -- which schema the keys have ----------------------------------------------------------------------------------------


async def test_a_fleet_says_which_schema_its_keys_have_and_who_says_so(serve: Service, redis: Redis) -> None:
    client = await serve()
    worker = (await client.get("/health")).json()["worker"]
    said = fields(await redis.hgetall(KEYS.corpus_schema))
    assert (said["version"].decode(), said["by"].decode()) == (str(SCHEMA), worker)
    assert {one["schema"] for one in (await client.get("/api/workers")).json()["workers"]} == {str(SCHEMA)}


async def test_a_further_field_is_no_other_schema(redis: Redis, redis_url: str) -> None:
    async with opened(redis_url, SCHEMA) as (before, _), opened(redis_url, FURTHER) as (after, _):
        for gate, held in ((before, SCHEMA), (after, FURTHER), (before, FURTHER)):
            assert await gate.check()
            assert await version(redis) == str(held), "rolling back, the newer fields may still be there"


async def test_a_newer_schema_waits_until_no_worker_of_the_older_lives(redis: Redis, redis_url: str) -> None:
    said: list[str] = []
    opening = opened(redis_url, NEXT, "new", said.append)
    async with opened(redis_url, SCHEMA, "old") as (old, schema), opening as (new, _):
        assert await old.check()
        registry = WorkerRegistry(old, KEYS, "old", lambda: {"schema": str(SCHEMA)})
        await registry.heartbeat()
        assert not await new.check()
        assert not await new.check()
        assert len(said) == 1, "once, however often it looks"
        assert "once the last of those workers has stopped" in said[0]
        await schema.look()
        assert await version(redis) == str(SCHEMA), "nobody of the older release is disturbed"
        await registry.leave()
        assert await new.check()
        assert await version(redis) == str(NEXT)
        with pytest.raises(SchemaConflict):
            await schema.look()
        assert not old.is_up
        assert not await old.check(), "it does not come back by itself"


async def test_workers_that_do_not_say_their_schema_are_of_the_first(redis: Redis, redis_url: str) -> None:
    async with opened(redis_url, SCHEMA, "old") as (old, _), opened(redis_url, NEXT, "new") as (new, _):
        assert await old.check()
        await redis.delete(KEYS.corpus_schema)  # as it is before the first worker that says it
        await WorkerRegistry(old, KEYS, "old", dict).heartbeat()
        assert not await new.check()
        assert await version(redis) is None


async def test_workers_of_both_kinds_that_start_at_once_never_use_the_keys_together(
    redis: Redis, redis_url: str
) -> None:
    async with opened(redis_url, NEXT, "a") as (new, _), opened(redis_url, SCHEMA, "b") as (old, schema):
        await asyncio.gather(*(gate.check() for gate in (new, old) * 3))
        held = await version(redis)
        assert held in (str(SCHEMA), str(NEXT))
        if held == str(NEXT) and old.is_up:  # it had looked before the other came
            with pytest.raises(SchemaConflict):
                await schema.look()
        assert (new.is_up, old.is_up) != (True, True)


async def test_who_encrypts_waits_for_releases_that_cannot_read_it_and_keeps_them_away(
    redis: Redis, redis_url: str
) -> None:
    before = Schema(SCHEMA.major, SCHEMA.minor - 1)
    async with (
        opened(redis_url, before, "old") as (old, schema),
        opened(redis_url, SCHEMA, "plain") as (plain, _),
        opened(redis_url, ENCRYPTED, "encrypts") as (encrypts, _),
    ):
        registries = [
            WorkerRegistry(gate, KEYS, name, lambda own=own: {"schema": str(own)})  # type: ignore[misc]
            for gate, name, own in ((old, "old", before), (plain, "plain", SCHEMA))
        ]
        assert await old.check()
        assert await plain.check()
        for registry in registries:
            await registry.heartbeat()
        assert not await encrypts.check()
        assert await version(redis) == str(SCHEMA)
        await registries[0].leave()
        assert await encrypts.check()
        assert await version(redis) == str(ENCRYPTED)
        with pytest.raises(SchemaConflict):
            await schema.look()
        assert await plain.check(), "it reads encrypted texts too"
        await redis.delete(KEYS.corpus_schema)
        assert await plain.check()
        plain.shut()
        assert await plain.check()
        assert await version(redis) == str(SCHEMA)
        encrypts.shut()
        assert await encrypts.check()
        assert await version(redis) == str(ENCRYPTED)


@pytest.mark.parametrize("stated", [str(NEXT), "9", "a later form"])
async def test_a_worker_that_finds_a_newer_schema_says_so_and_answers_without_it(
    serve: Service, redis: Redis, stated: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await serve()
    document = await add(client, "Holiday", HOLIDAY)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await redis.hset(KEYS.corpus_schema, "version", stated)

    async def is_shut() -> bool:
        return not await database(client)

    await wait_until_async(is_shut)
    answered = await ask(client, QUESTION)
    assert answered["cache"]["status"] == "bypass"
    assert (await client.post("/documents", json={"title": "New", "text": "New."})).status_code == 503
    assert await redis.exists(entry, KEYS.document(document["id"])) == 2
    assert await version(redis) == stated
    lines = [line for line in capfd.readouterr().err.splitlines() if "redis_schema_conflict" in line]
    assert len(lines) == 1
    assert f"have schema {stated}, but this release needs {SCHEMA}" in lines[0]
    await redis.hset(KEYS.corpus_schema, "version", str(SCHEMA))
    await wait_until_async(lambda: database(client))
    assert (await ask(client, QUESTION))["cache"]["kind"] == "exact"


async def test_after_flushall_the_schema_is_stated_again(serve: Service, redis: Redis) -> None:
    await serve()
    await redis.flushall()
    await wait_until_async(lambda: redis.exists(KEYS.corpus_schema))
    assert await version(redis) == str(SCHEMA)


# -- what a later release writes beside --------------------------------------------------------------------------------


async def test_further_fields_of_an_entry_and_of_its_sources_change_nothing(serve: Service, redis: Redis) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    answered = await ask(client, "Who approves my holiday?")
    entry = answered["cache"]["entry"]
    stored = orjson.loads(raw(await redis.hget(entry, "sources")))
    sources = [{**source, "leaf": 4, "spans": [[0, 3]]} for source in stored]
    await redis.hset(entry, mapping={"sources": orjson.dumps(sources), "form": "2", "reviewed_by": "nobody"})
    hit = await ask(client, "Who approves my holiday?")
    assert (hit["cache"]["status"], hit["sources"]) == ("hit", answered["sources"])
    assert (await ask(client, "who approves my holiday"))["cache"]["status"] == "hit"


async def test_an_entry_that_only_the_later_release_reads_is_left_for_it(serve: Service, redis: Redis) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await redis.hset(entry, "sources", b'{"v": 2, "items": []}')
    before = await redis.hgetall(entry)
    assert (await ask(client, PARAPHRASE))["cache"]["status"] == "miss"
    assert await redis.hgetall(entry) == before
    assert (await client.delete("/api/semantic-cache", params={"all": "true"})).json()["deleted"] == 2


async def test_unknown_facts_of_a_worker_and_counts_of_a_later_release_are_no_fault(
    serve: Service, redis: BatchingRedis
) -> None:
    client = await serve()
    await WorkerRegistry(
        HealthGatedRedis(redis, 4), KEYS, "next", lambda: {"pid": 1, "requests": 2, "pool_kind": "h2", "zone": "b"}
    )._renew(redis)
    await redis.hset(KEYS.cache_stats, mapping={"reranked": "0.25", "misses": "3"})
    await redis.hset("rag:bulkhead:{ollama}:stats", mapping={"batch_turn": "acme", "policy": "fair"})
    await redis.hset("rag:cb:{ollama}:window", "later", "1")
    await redis.hset(KEYS.retries, mapping={f"{10**9}:hedges": "4", "note": "x"})
    await redis.hset("rag:cb:{ollama}", "jitter", "on")
    await ask(client, QUESTION)
    found = (await client.get("/api/workers")).json()["workers"]
    assert next(one for one in found if one["id"] == "next")["pool"]["kind"] == "h2"
    assert (await client.get("/api/connection-pool/metrics")).status_code == 200
    assert (await client.get("/api/semantic-cache/metrics")).json()["misses"] >= 3
    assert (await client.get("/api/bulkhead/metrics")).status_code == 200
    counted = (await client.get("/api/circuit-breaker/metrics")).json()
    assert (counted["state"], counted["store"]) == ("CLOSED", "shared")
    assert await redis.hget("rag:cb:{ollama}:window", "later") == b"1"


async def test_work_for_a_later_release_is_left_to_it_with_its_attempts(redis: BatchingRedis) -> None:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    documents = RedisDocuments(gate, KEYS)
    works = RedisDocumentWork(gate, KEYS, "old", KINDS)
    facts = DocumentFacts("default", "Slides")
    for name, media_type in (("a" * 24, "application/x-slides"), ("b" * 24, MARKDOWN)):
        await documents.propose(Draft(name, facts, name, b"# Text", media_type), 10)
    assert await works.take("b" * 24, 10) is not None
    for _ in range(10):
        assert await works.take("a" * 24, 10) is None
    assert await redis.hget(KEYS.document_work("a" * 24), "attempts") is None
    await redis.hset(KEYS.document_work("a" * 24), mapping={"phase": "translate"})
    await redis.hdel(KEYS.document_work("a" * 24), "media_type")
    assert await works.take("a" * 24, 10) is None
    later = RedisDocumentWork(gate, KEYS, "new", {*KINDS, "application/x-slides"})
    await redis.hset(KEYS.document_work("a" * 24), mapping={"phase": "store", "media_type": "application/x-slides"})
    taken = await later.take("a" * 24, 10)
    assert taken is not None
    assert taken.attempts == 1


async def test_a_large_file_of_a_later_kind_is_neither_failed_nor_lost(serve: Service, redis: BatchingRedis) -> None:
    client = await serve(embedder=ONNX)
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    facts = DocumentFacts("default", "Slides")
    await RedisDocuments(gate, KEYS).propose(Draft("a" * 24, facts, "d", b"bytes", "application/x-slides"), 10)
    await add(client, "Holiday policy", HOLIDAY)  # which a worker took from the same list meanwhile
    assert (await client.get(f"/documents/{'a' * 24}")).json()["status"] == "processing"
    assert await redis.get(KEYS.document_draft("a" * 24)) == b"bytes"


async def test_what_was_read_from_a_file_ends_with_its_revision(
    serve: Service, redis: BatchingRedis, redis_url: str
) -> None:
    """Releases that know neither `warnings` nor `language` leave both in the hash when they replace a document."""
    client = await serve(embedder=ONNX)
    files = {"file": ("all.zip", archive(**{"notes.md": HOUSES.encode(), "program.exe": b"MZ"}))}
    sent = (await client.post("/documents", files=files)).json()
    url, key = f"/documents/{sent['id']}", KEYS.document(sent["id"])
    assert (sent["language"], len(sent["warnings"])) == ("de", 1)
    replaced = sent["revision"] + 1
    await redis.hset(key, mapping={"revision": replaced})
    found = (await client.get(url)).json()
    assert (found["language"], found["warnings"]) == (None, [])
    embedder = EmbedderIdentity("next", 384, "0123456789")
    await redis.set(KEYS.embedding_lease(embedder.fingerprint), "new")
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    reembedding = RedisReembedding(gate, KEYS, "new")
    (work,) = [one async for one in reembedding.missing(embedder) if one.id == sent["id"]]
    assert await reembedding.embedded(replace(work, facts=replace(work.facts, language="en")), embedder)
    found = (await client.get(url)).json()
    assert (found["language"], found["warnings"]) == ("en", [])


async def test_a_warm_up_in_a_state_that_is_not_known_goes_on_being_listed(serve: Service, redis: Redis) -> None:
    client = await serve()
    started = await client.post("/api/semantic-cache/warm", json={"questions": [QUESTION]})
    job = started.headers["Location"].rpartition("/")[2]

    async def is_done() -> bool:
        return await redis.hget(f"rag:warm:{job}", "status") == b"done"

    await wait_until_async(is_done)
    await redis.hset(f"rag:warm:{job}", mapping={"status": "paused", "held_until_ms": "0"})
    await redis.zadd(KEYS.cache_warm_ups, {job: 1, "gone": 2})

    async def has_looked() -> bool:
        return await redis.zscore(KEYS.cache_warm_ups, "gone") is None

    await wait_until_async(has_looked)
    assert await redis.zscore(KEYS.cache_warm_ups, job) == 1


async def test_words_of_a_later_leader_are_read_as_far_as_they_are_known(
    serve: Service, redis: Redis, stub: StubOllama
) -> None:
    leader, follower = await serve(), await serve()
    stub.behaviour(delay=0.5, path="/api/chat")
    asking = asyncio.create_task(ask(leader, QUESTION))

    async def flight() -> str | None:
        keys: list[Any] = [key async for key in redis.scan_iter("rag:flight:{*}")]
        return keys[0].decode() if keys else None

    await wait_until_async(flight)
    key = await flight()
    assert key is not None
    await redis.hset(key, mapping={"release": "9.9.9", "follower-note": "x"})
    following = asyncio.create_task(ask(follower, QUESTION))
    await wait_until_async(lambda: redis.exists(f"{key}:words"))
    fence = await redis.hget(key, "fence")
    for body in (b'{"is": "hint", "n": 1}', b"3", b"[]"):
        await redis.xadd(f"{key}:words", {"fence": fence or b"", "body": body, "more": "x"})
    first, second = await asyncio.gather(asking, following)
    assert second["answer"] == first["answer"]
    assert second["cache"]["status"] == "coalesced"
