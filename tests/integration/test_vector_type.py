"""SEMANTIC_CACHE_VECTOR_TYPE: workers with vectors of 16 and of 32 bits share a Redis, and none compares wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from api.embedders.minilm import MiniLM, model_files
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import VECTOR_FIELDS, VectorType, cosines, decoded, encoded, vector_type_of
from api.redis_store.stores.cache.entries import vector_fields
from api.redis_store.stores.cache.semantic_index import Nearest, SemanticIndex
from api.values import EmbedderIdentity
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.replies import fields
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

SHORT: dict[str, Any] = {"vector_type": "float16"}
QUESTION, PARAPHRASE = "How do I reset my password?", "My password, how do I reset?"
ANOTHER = "My password: how do I reset?"
APPROVAL, FLOOR = "Who approves my holiday?", "On which floor is the canteen?"
FRESH = {"Cache-Control": "no-cache"}
PAIRS = Path(__file__).parents[1] / "unit" / "guard_pairs.tsv"
KEYS = Keys().partition("")


async def found(client: httpx.AsyncClient, question: str) -> tuple[str, str]:
    """What the cache would serve: the kind and the entry."""
    only = {"Cache-Control": "only-if-cached"}
    response = await client.post("/query", json={"question": question}, headers=only)
    cache = response.json()["cache"] if response.status_code == 200 else {"kind": "", "entry": ""}
    return cache["kind"], cache["entry"]


async def by_meaning(client: httpx.AsyncClient, entry: str) -> None:
    """Waits until the index is complete and finds an entry."""

    async def is_found() -> bool:
        return await found(client, ANOTHER) == ("semantic", entry)

    await wait_until_async(is_found)


async def indexes(redis: Redis) -> set[str]:
    return {name.decode() for name in await redis.execute_command("FT._LIST")}  # type: ignore[no-untyped-call]


async def test_an_answer_is_found_by_16_bit_numbers(serve: Service, redis: Redis) -> None:
    client = await serve(cache=SHORT)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await by_meaning(client, entry)
    figures = (await client.get("/api/semantic-cache/metrics")).json()
    stored = fields(await redis.hgetall(entry))
    assert len(stored["vector16"]) == 2 * figures["embedder"]["dimension"]
    assert "vector" not in stored
    assert (figures["vector_type"], figures["cache_size"]) == ("float16", 1)
    assert [name.endswith("-flat-float16-2") for name in await indexes(redis)] == [True]


async def test_workers_of_both_types_share_exact_hits_and_compare_only_their_own(serve: Service, redis: Redis) -> None:
    one, other = await serve(), await serve(cache=SHORT)
    first = (await ask(one, QUESTION))["cache"]["entry"]
    assert await found(other, QUESTION) == ("exact", first)
    assert await found(other, ANOTHER) == ("", "")
    second = (await ask(other, PARAPHRASE))["cache"]["entry"]
    assert await found(one, PARAPHRASE) == ("exact", second)
    await by_meaning(one, first)
    await by_meaning(other, second)
    assert len(await indexes(redis)) == 2

    await ask(other, QUESTION, headers=FRESH)
    assert VECTOR_FIELDS.values() & fields(await redis.hgetall(first)).keys() == {"vector16"}
    assert await found(one, QUESTION) == ("exact", first)
    assert await found(one, ANOTHER) == ("", "")


@pytest.mark.once(reason="the search module decides")
@pytest.mark.parametrize(("stored", "told"), [("float32", "float16"), ("float16", "float32"), ("float16", "float16")])
async def test_a_new_document_makes_stale_what_it_may_change_whatever_its_type(
    serve: Service, stored: VectorType, told: VectorType
) -> None:
    one, other = [await serve(embedder=ONNX, cache={"vector_type": of}) for of in (stored, told)]
    await add(one, "Holiday", HOLIDAY)
    await add(one, "Canteen", CANTEEN)
    for question in (APPROVAL, FLOOR):
        assert (await ask(one, question))["sources"]
    await add(other, "Long holiday", "Holiday of more than a month is approved by the office, not by the team lead.")
    assert (await found(one, APPROVAL))[0] == ""
    left = (await found(one, FLOOR))[0]
    assert left == ("exact" if stored == told else ""), "what cannot be compared may be wrong"


async def test_a_bad_vote_takes_copies_of_both_types(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve(cache=SHORT)
    stub.behaviour(answer="Your manager.", path="/api/chat")
    answers = [await ask(client, text) for client, text in ((one, QUESTION), (other, PARAPHRASE))]
    for client, answer in zip((one, other), answers, strict=True):
        await by_meaning(client, answer["cache"]["entry"])
    body = {"request_id": answers[1]["request_id"], "verdict": "bad"}
    assert (await other.post("/feedback", json=body)).status_code == 202
    assert [(await found(client, text))[0] for client in (one, other) for text in (QUESTION, PARAPHRASE)] == [""] * 4


async def test_a_deletion_by_similarity_finds_both_types(serve: Service) -> None:
    one, other = await serve(), await serve(cache=SHORT)
    for client, text in ((one, QUESTION), (other, PARAPHRASE), (one, "Where is the canteen?")):
        await ask(client, text)
    for client in (one, other):
        asked: dict[str, str | float] = {"question": PARAPHRASE, "similarity": 1.0 - 1e-6, "dry_run": True}
        assert (await client.delete("/api/semantic-cache", params=asked)).json()["matched"] == 2


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_numbers_that_16_bits_cannot_have_make_no_vector() -> None:
    for numbers in ([1.0, 70_000.0], [1.0, -np.inf], [np.nan, 0.0]):
        vector = np.array(numbers, "<f4").tobytes()
        assert encoded(vector, "float16") is None
        assert vector_fields(vector, "float16") == {}
    assert vector_fields(None, "float16") == {}


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_a_vector_is_read_back_as_32_bit_numbers(vector_type: VectorType) -> None:
    row = np.random.default_rng(1).standard_normal(384)
    vector = (row / np.linalg.norm(row)).astype("<f4").tobytes()
    stored = vector_fields(vector, vector_type)
    read = np.frombuffer(decoded(stored) or b"", "<f4")
    assert read @ np.frombuffer(vector, "<f4") == pytest.approx(1.0, abs=1e-4)
    own = list(stored.values())
    assert cosines(own[0], own, vector_type)[0] == pytest.approx(1.0, abs=1e-6)
    assert vector_type_of(KEYS.index("e", "hnsw", vector_type)) == vector_type


@pytest.mark.once(reason="the search module computes")
async def test_of_several_hundred_questions_none_becomes_another_decision(redis: Redis, redis_url: str) -> None:
    model = MiniLM(model_files(None))
    lines = [line.split("\t") for line in PAIRS.read_text("utf-8").splitlines() if not line.startswith("#")]
    stored, asked = (model.encode([line[place] for line in lines]) for place in (1, 2))
    embedder = EmbedderIdentity("m", model.dimension, "a" * 10)
    scope = f"{embedder.fingerprint}-{'0' * 24}"
    nearest: list[list[list[Nearest]]] = []
    for vector_type in VECTOR_FIELDS:
        async with redis.pipeline(transaction=False) as pipe:
            for number, vector in enumerate(stored):
                entry: dict[str, Any] = {"scope": scope, "expires_ms": 2, **vector_fields(vector, vector_type)}
                pipe.hset(KEYS.entry(scope, f"{number:032x}"), mapping=entry)  # type: ignore[arg-type]
            await pipe.execute()
        async with short_commands(RedisAddress(redis_url, timeout=5.0, connect_timeout=1.0, max_connections=4)) as to:
            gate = HealthGatedRedis(to, 4)
            index = SemanticIndex(gate, KEYS, "hnsw", vector_type)
            assert await gate.check()

            async def is_complete(index: SemanticIndex = index) -> bool:
                await index.maintain()
                return await index.complete(embedder) is not None

            await wait_until_async(is_complete)
            nearest.append([await index.nearest(embedder, scope, vector, 1) for vector in asked])
    assert len(asked) > 500
    for threshold in (0.88, 0.92, 0.95):
        hits = [[one[0].similarity >= threshold for one in of_type] for of_type in nearest]
        assert hits[0] == hits[1]
        assert 0 < sum(hits[0]) < len(hits[0])
    assert [one[0].key for one in nearest[0]] == [one[0].key for one in nearest[1]]
