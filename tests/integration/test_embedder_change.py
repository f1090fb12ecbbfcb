"""A rolling change of the embedder or the template: old and new workers serve, and a rollback finds everything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.knowledge.ingestion_worker import StaleEmbeddings
from api.ports.inference import CurrentIdentity
from api.ports.telemetry import Telemetry
from api.query.prompt import PACKAGED
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.embeddings import RedisReembedding, RedisUnusedEmbeddings
from api.redis_store.stores.fleet import RedisLeaderLease
from api.values import EmbedderIdentity, Embedding
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.replies import text, texts
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
OTHER: dict[str, Any] = {"embedder": "ollama", "embed_timeout": 10}
LOW = {"retrieval_relevance_floor": -1.0}
QUESTION = "Who approves my holiday?"
ROOT = Path(__file__).parents[2]


async def embedders(redis: Redis) -> dict[str, float]:
    listed: Any = await redis.zrange(KEYS.corpus_embedders, 0, -1, withscores=True)
    return {text(name): at for name, at in listed}


async def chunks_by(redis: Redis, embedder: str) -> int:
    return len([key async for key in redis.scan_iter(f"{KEYS.chunk_prefix(embedder)}*", count=1000)])


async def indexes(redis: Redis) -> set[str]:
    return {name.decode() for name in await redis.execute_command("FT._LIST")}  # type: ignore[no-untyped-call]


async def embedder_of(client: httpx.AsyncClient, redis: Redis, known: set[str]) -> str:
    """The fingerprint of a worker's embedder, which the fleet hears of within a moment."""

    async def is_new() -> bool:
        return bool((await embedders(redis)).keys() - known)

    await wait_until_async(is_new)
    return ((await embedders(redis)).keys() - known).pop()


async def is_embedded_by(redis: Redis, document: str, embedder: str) -> bool:
    revision, embedded = await redis.hmget(KEYS.document(document), "revision", f"embedded:{embedder}")
    return revision == embedded


async def test_two_embedders_at_once_each_hit_their_own_and_both_find_the_documents(
    serve: Service, redis: Redis
) -> None:
    before = await serve(embedder=OTHER, retrieval=LOW)
    old = await embedder_of(before, redis, set())
    document = await add(before, "Holiday", HOLIDAY)
    first = await ask(before, QUESTION)

    async def keeps_its_answers(client: httpx.AsyncClient) -> bool:
        """Not before it has embedded all documents and Redis has built its index."""
        return (await ask(client, QUESTION))["cache"]["entry"] is not None

    await wait_until_async(lambda: keeps_its_answers(before))
    after = await serve(embedder=ONNX, retrieval=LOW)
    new = await embedder_of(after, redis, {old})
    crossing = await ask(after, QUESTION)
    assert crossing["cache"]["status"] == "miss", "an answer found by another embedding is not this one's"
    assert [source["document_id"] for source in crossing["sources"]] == [document["id"]], "found before its turn came"

    await wait_until_async(lambda: keeps_its_answers(after))
    for client, answered, embedder in ((before, first, old), (after, crossing, new)):
        hit = await ask(client, QUESTION)
        assert hit["cache"]["kind"] == "exact"
        assert hit["cache"]["entry"] == (await ask(client, QUESTION.lower()))["cache"]["entry"]
        assert answered["cache"]["entry"] in (None, hit["cache"]["entry"])
        assert hit["cache"]["entry"].startswith(KEYS.partition("").embedded_by(embedder))
    await wait_until_async(lambda: is_embedded_by(redis, document["id"], new))
    again = await add(after, "Canteen", CANTEEN)

    async def is_embedded_by_both() -> bool:
        return await is_embedded_by(redis, again["id"], old) and await is_embedded_by(redis, again["id"], new)

    await wait_until_async(is_embedded_by_both)
    for client in (before, after):
        found = await ask(client, "On which floor is the canteen?", top_k=2)
        assert {source["document_id"] for source in found["sources"]} == {document["id"], again["id"]}
    assert {KEYS.passage_index(old), KEYS.passage_index(new)} <= await indexes(redis)


async def test_rolling_back_finds_the_old_answers_and_the_old_index_again(serve: Service, redis: Redis) -> None:
    before = await serve(embedder=OTHER, retrieval=LOW)
    old = await embedder_of(before, redis, set())
    document = await add(before, "Holiday", HOLIDAY)
    entry = (await ask(before, QUESTION))["cache"]["entry"]
    after = await serve(embedder=ONNX, retrieval=LOW)
    new = await embedder_of(after, redis, {old})
    await wait_until_async(lambda: is_embedded_by(redis, document["id"], new))
    await ask(after, QUESTION)
    back = await serve(embedder=OTHER, retrieval=LOW)
    hit = await ask(back, QUESTION)
    assert (hit["cache"]["kind"], hit["cache"]["entry"]) == ("exact", entry)
    assert (await ask(back, "Who may approve a holiday of mine?"))["sources"][0]["document_id"] == document["id"]


async def test_a_document_that_goes_is_gone_for_both(serve: Service, redis: Redis) -> None:
    before, after = await serve(embedder=OTHER, retrieval=LOW), await serve(embedder=ONNX, retrieval=LOW)
    document = await add(before, "Holiday", HOLIDAY)

    async def is_embedded_twice() -> bool:
        fields = texts(await redis.hkeys(KEYS.document(document["id"])))
        return sum(name.startswith("embedded:") for name in fields) == 2

    await wait_until_async(is_embedded_twice)
    assert [len((await ask(client, QUESTION))["sources"]) for client in (before, after)] == [1, 1]
    assert (await after.delete(f"/documents/{document['id']}")).status_code == 204
    for client in (before, after):
        answered = await ask(client, QUESTION)
        assert (answered["cache"]["status"], answered["sources"]) == ("miss", [])
    assert [key async for key in redis.scan_iter("rag:chunk:*")] == []


# -- another template --------------------------------------------------------------------------------------------------


@pytest.fixture
def template(tmp_path: Path) -> str:
    """A template file of one's own, under the version of Ragherd's."""
    text = (ROOT / "api" / "query" / "templates" / PACKAGED).read_text().replace("$question", "$question Briefly.")
    (tmp_path / "own.toml").write_text(text)
    return str(tmp_path / "own.toml")


async def test_two_templates_at_once_each_hit_their_own_and_rolling_back_finds_the_old(
    serve: Service, stub: StubOllama, template: str
) -> None:
    plain, own = {"embedder": ONNX}, {"embedder": ONNX, "retrieval": {"prompt_template_path": template}}
    before, after = await serve(**plain), await serve(**own)
    await add(before, "Holiday", HOLIDAY)
    answers = [await ask(client, QUESTION) for client in (before, after)]
    assert [answered["cache"]["status"] for answered in answers] == ["miss", "miss"]
    assert ["Briefly." in answered["answer"] for answered in answers] == [False, True]  # the stub gives the turn back
    third, back = await serve(**own), await serve(**plain)
    for client, answered in ((before, answers[0]), (after, answers[1]), (third, answers[1]), (back, answers[0])):
        hit = await ask(client, QUESTION)
        assert (hit["cache"]["kind"], hit["answer"]) == ("exact", answered["answer"])
        near = await ask(client, "Who is it that approves my holiday?")
        assert near["cache"]["status"] in ("hit", "miss")
        assert ("Briefly." in near["answer"]) is ("Briefly." in answered["answer"])
    assert stub.stats["requests"]["/api/chat"] <= 4


# -- what nobody uses any more -----------------------------------------------------------------------------------------


class Fleet:
    """Embedders of a fleet over time, as the workers note them; `opened` on an emptied Redis."""

    def __init__(self, redis: BatchingRedis) -> None:
        self.redis = redis
        self.gate = HealthGatedRedis(redis, 8)
        self.embeddings = RedisUnusedEmbeddings(self.gate, KEYS)

    async def weeks_pass(self, embedder: str) -> None:
        await self.redis.zincrby(KEYS.corpus_embedders, -14 * 24 * 3600 * 1000, embedder)

    async def removed(self, keep: float = 7 * 24 * 3600) -> int:
        assert await self.gate.check()
        return sum(
            [chunks for old in await self.embeddings.unused(keep) async for chunks in self.embeddings.remove(old, keep)]
        )


async def changed(serve: Service, redis: Redis) -> tuple[str, str, str]:
    """A document that was embedded by one embedder and then by another: their fingerprints, and the document."""
    before = await serve(embedder=OTHER, retrieval=LOW)
    old = await embedder_of(before, redis, set())
    document = (await add(before, "Holiday", HOLIDAY))["id"]
    after = await serve(embedder=ONNX, retrieval=LOW)
    new = await embedder_of(after, redis, {old})
    await wait_until_async(lambda: is_embedded_by(redis, document, new))
    return old, new, document


async def test_chunks_that_nobody_uses_go_after_a_safe_time_and_nothing_else(
    serve: Service, redis: BatchingRedis
) -> None:
    old, new, document = await changed(serve, redis)
    fleet = Fleet(redis)
    assert await fleet.removed() == 0
    assert await chunks_by(redis, old) == 1, "rolling back would need it"
    await fleet.weeks_pass(old)
    assert await fleet.removed() == 1
    assert (await chunks_by(redis, old), await chunks_by(redis, new)) == (0, 1)
    assert KEYS.passage_index(old) not in await indexes(redis)
    assert old not in await embedders(redis)
    fields = set(texts(await redis.hkeys(KEYS.document(document))))
    assert {name for name in fields if name.startswith("embedded:")} == {f"embedded:{new}"}
    assert f"done:{old}".encode() not in await redis.hkeys(KEYS.corpus_state)
    counted = texts(await redis.hkeys(KEYS.document_chunks(document)))
    assert [name.partition(":")[0] for name in counted] == [new]


async def test_rolled_back_to_after_all_it_is_embedded_anew(serve: Service, redis: BatchingRedis) -> None:
    old, _, document = await changed(serve, redis)
    fleet = Fleet(redis)
    await fleet.weeks_pass(old)
    assert await fleet.removed() == 1
    back = await serve(embedder=OTHER, retrieval=LOW)
    await wait_until_async(lambda: is_embedded_by(redis, document, old))
    found = await ask(back, "Is there anybody who says yes to holiday?")
    assert [source["document_id"] for source in found["sources"]] == [document]


async def test_used_again_in_the_middle_of_the_removal_nothing_that_serves_goes(redis: BatchingRedis) -> None:
    fleet = Fleet(redis)
    assert await fleet.gate.check()
    old = EmbedderIdentity("old", 4, "a" * 10)
    await fleet.embeddings.use(old)
    for number in range(3):
        document = f"{number}" * 24
        await redis.hset(KEYS.document(document), mapping={"revision": 1, f"embedded:{old.fingerprint}": 1})
        await redis.hset(KEYS.document_chunks(document), f"{old.fingerprint}:1", 2)
        for chunk in range(2):
            await redis.hset(KEYS.chunk(old.fingerprint, document, 1, chunk), "text", "x")
    await redis.hset(KEYS.corpus_state, f"done:{old.fingerprint}", 3)
    await fleet.weeks_pass(old.fingerprint)
    removal = fleet.embeddings.remove(old.fingerprint, 60)
    assert await anext(removal) == 2
    await fleet.embeddings.use(old)
    assert [chunks async for chunks in removal] == []
    assert await redis.hget(KEYS.corpus_state, f"done:{old.fingerprint}") is None, "it will see what is missing"
    for number in range(3):
        document = f"{number}" * 24
        whole = await redis.hexists(KEYS.document(document), f"embedded:{old.fingerprint}")
        names = [KEYS.chunk(old.fingerprint, document, 1, chunk) for chunk in range(2)]
        assert await redis.exists(*names) == (2 if whole else 0)


async def test_an_embedder_of_which_nothing_is_known_counts_as_used_now(serve: Service, redis: BatchingRedis) -> None:
    old, _, _ = await changed(serve, redis)
    await redis.zrem(KEYS.corpus_embedders, old)  # as after an upgrade from a release that did not note it
    assert await Fleet(redis).removed() == 0
    assert await chunks_by(redis, old) == 1


class Present:
    """The embedder of a fleet as far as this is concerned: who it is."""

    current = CurrentIdentity()

    async def identity(self) -> EmbedderIdentity:
        return EmbedderIdentity("new", 4, "b" * 10)

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        return [Embedding(b"\0" * 16) for _ in texts]


async def test_nothing_goes_before_the_present_embedder_has_embedded_all_itself(redis: BatchingRedis) -> None:
    fleet, told = Fleet(redis), Telemetry()
    assert await fleet.gate.check()
    lease, reembedding = RedisLeaderLease(fleet.gate, KEYS.janitor, "w"), RedisReembedding(fleet.gate, KEYS, "w")
    old = StaleEmbeddings(fleet.embeddings, reembedding, Present(), lease, told, keep=60)
    await redis.zadd(KEYS.corpus_embedders, {"a" * 10: 1000})
    await redis.hset(KEYS.corpus_state, mapping={"epoch": 7, f"done:{'a' * 10}": 7})
    await redis.hset(KEYS.document_chunks("1" * 24), f"{'a' * 10}:1", 3)
    assert await old.clean() == 0, "its words are still searched in the other's index"
    await redis.hset(KEYS.corpus_state, f"done:{'b' * 10}", 7)
    assert await old.clean() == 3
    assert list(await embedders(redis)) == ["b" * 10]


async def test_a_worker_removes_by_itself(serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.knowledge.ingestion_worker.CLEAN_SECONDS", 0.1)
    monkeypatch.setattr("api.knowledge.ingestion_worker.USE_SECONDS", 0.1)
    await redis.zadd(KEYS.corpus_embedders, {"a" * 10: 1000})
    await redis.hset(KEYS.document_chunks("1" * 24), f"{'a' * 10}:1", 1)
    await serve(embedder=ONNX, documents={"unused_embeddings_keep": 60})

    async def is_gone() -> bool:
        return len(await embedders(redis)) == 1 and not await redis.exists(KEYS.document_chunks("1" * 24))

    await wait_until_async(is_gone)


async def test_a_fleet_with_one_embedder_keeps_noting_it(
    serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.knowledge.ingestion_worker.USE_SECONDS", 0.05)
    client = await serve(embedder=ONNX)
    own = await embedder_of(client, redis, set())
    noted = (await embedders(redis))[own]

    async def is_later() -> bool:
        return (await embedders(redis))[own] > noted

    await asyncio.wait_for(wait_until_async(is_later), 10)
