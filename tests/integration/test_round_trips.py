"""The round trips to Redis that a question waits for. One more must be a decision, not an oversight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np
from redis.asyncio import Redis

from api.ports.answer_cache import NearestSearch, NewAnswer
from api.redis_store.client import RedisAddress, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import EmbedderIdentity
from tests.integration.test_documents import add
from tests.support.round_trips import round_trips
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION: Final = "What is the capital of France?"
PARAPHRASE: Final = "What is the capital of France, please?"
HOUR_MS: Final = 3_600_000

FULL: Final = {"X-Ragherd-Priority": "interactive"}
"""The default, said aloud: the request takes the full path."""
AWAITED: Final = ("answers.find", "answers.reread", "FT.SEARCH", "flights.join", "bulkhead.take", "answers.store")
IN_ALL: Final = (*AWAITED, "flights.end")
"""What only one question causes. Permits and outcomes go back for several at once."""
READING: Final = ("HGETALL", "HMGET")
"""Commands of a question. Others are sent in the background, and so are those that read if they do not come first."""


OF_EMBEDDING, OF_MODEL = "bulkhead.take", "bulkhead.take"


def awaited(written: Sequence[str], commands: tuple[str, ...] = AWAITED) -> list[str]:
    """The commands of each write, without those that are sent along in the background."""
    writes = (" + ".join(_of_a_question(write.split(" + "), commands)) for write in written)
    return [write for write in writes if write]


def _of_a_question(write: Sequence[str], commands: tuple[str, ...]) -> list[str]:
    return [one for one in write if one.startswith(commands) or (one is write[0] and one.startswith(READING))]


async def test_a_miss_reads_the_documents_with_the_look_up(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)  # loads the scripts
    with round_trips() as written:
        answered = await ask(client, "How tall is Mont Blanc?")
    assert answered["cache"]["status"] == "miss"
    who_leads = f"flights.join + {OF_MODEL}"
    assert awaited(written) == ["answers.find", OF_EMBEDDING, "FT.SEARCH", who_leads, "answers.store"]


async def test_a_miss_makes_three_round_trips_besides_the_search(serve: Service, redis: Redis) -> None:
    client = await serve()

    async def ask_with(seed: int) -> None:
        answered = await ask(client, QUESTION, options={"seed": seed})
        assert answered["cache"]["status"] == "miss"
        await wait_until_async(is_over)

    async def is_over() -> bool:
        return not [key async for key in redis.scan_iter("rag:flight:*")]

    await ask_with(1)  # loads the scripts, and remembers the embedding
    with round_trips() as written:
        await ask_with(2)
    assert awaited(written, IN_ALL) == ["answers.find", "FT.SEARCH", f"flights.join + {OF_MODEL}", "answers.store"]


async def test_a_repeated_semantic_hit_makes_one_round_trip(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    first = await ask(client, PARAPHRASE, headers=FULL)
    with round_trips() as written:
        again = await ask(client, PARAPHRASE, headers=FULL)
    assert [first["cache"]["kind"], again["cache"]["kind"]] == ["semantic", "semantic"]
    assert again["cache"]["similarity"] == first["cache"]["similarity"]
    assert awaited(written) == ["answers.find + FT.SEARCH"]


async def test_an_equal_request_reads_only_the_entries_again(serve: Service) -> None:
    client = await serve(cache={"near_bytes": 0, "shadow_rate": 0.0})
    await ask(client, QUESTION)
    for _ in range(2):  # loads the script
        await ask(client, PARAPHRASE)
    for question in (QUESTION, PARAPHRASE):
        with round_trips() as written:
            await ask(client, question)
        assert awaited(written) == ["answers.reread"]


async def test_equal_requests_at_once_share_a_round_trip(serve: Service) -> None:
    client = await serve(cache={"near_bytes": 0, "shadow_rate": 0.0})
    for _ in range(2):
        await asyncio.gather(*[ask(client, QUESTION) for _ in range(8)])
    with round_trips() as written:
        answers = await asyncio.gather(*[ask(client, QUESTION) for _ in range(8)])
    assert {answer["cache"]["kind"] for answer in answers} == {"exact"}
    assert len(awaited(written)) < 8


async def test_a_repeated_semantic_hit_survives_the_loss_of_the_scripts_and_the_index(
    serve: Service, redis: Redis
) -> None:
    client = await serve()
    await ask(client, QUESTION)
    await ask(client, PARAPHRASE, headers=FULL)
    await redis.script_flush()
    assert (await ask(client, PARAPHRASE, headers=FULL))["cache"]["kind"] == "semantic"
    (index,) = await redis.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
    await redis.execute_command("FT.DROPINDEX", index)  # type: ignore[no-untyped-call]
    kinds = [(await ask(client, PARAPHRASE, headers=FULL))["cache"]["kind"] for _ in range(2)]
    assert kinds == [None, "exact"], "the miss makes the index again"


async def test_a_question_with_an_answer_of_its_own_is_an_exact_hit_again(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    assert (await ask(client, PARAPHRASE))["cache"]["kind"] == "semantic"
    generated = await ask(client, PARAPHRASE, headers={"Cache-Control": "no-cache"})
    assert generated["cache"]["status"] == "bypass"
    searched = []
    for _ in range(2):
        with round_trips() as written:
            answer = await client.post("/query", json={"question": PARAPHRASE, "stream": True})
        assert '"kind":"exact"' in answer.text
        searched.append(awaited(written))
    assert searched == [["answers.find + FT.SEARCH"], ["answers.find"]]


async def test_a_search_that_is_sent_along_finds_nothing_that_has_expired(redis: Redis, redis_url: str) -> None:
    async with short_commands(RedisAddress(redis_url, timeout=5.0, connect_timeout=5.0, max_connections=4)) as client:
        await finds_nothing_that_has_expired(redis, HealthGatedRedis(client, 8))


async def finds_nothing_that_has_expired(redis: Redis, gate: HealthGatedRedis) -> None:
    keys, model = Keys(), EmbedderIdentity("model", 2, "a" * 10)
    assert await gate.check()
    indexes, scope = SemanticIndexes(gate, keys), f"{model.fingerprint}-{'b' * 24}"
    counters = CacheCounters(gate, keys, "w")
    cache = RedisAnswerCache(gate, keys, indexes, counters, ttl_ms=HOUR_MS, stale_ms=HOUR_MS, max_size=9)
    vector = np.array([1.0, 0.0], dtype=np.float32).tobytes()
    index = indexes.of(scope)

    async def serves() -> bool:
        await index.ensure(model)
        return index.search(model, scope, vector, 0, 5) is not None

    assert index.search(model, scope, vector, 0, 5) is None, "the worker does not know an index"
    await wait_until_async(serves)
    for name in ("expired", "fresh"):
        stored = await cache.store(scope, name, vector, NewAnswer(name, "a", "m", "t"))
        assert stored is not None
        if name == "expired":
            await redis.hset(stored.entry, "expires_ms", str(stored.created_ms - 1_000))

    async def found(stale_ms: int) -> list[str]:
        exact = await cache.find_exact(scope, "another", search=NearestSearch(model, vector, stale_ms, 5))
        assert exact.match is None
        assert exact.similar is not None
        return sorted(match.answer.question for match in exact.similar)

    assert await found(0) == ["fresh"], "although this worker does not know Redis's clock yet"
    assert await found(HOUR_MS) == ["expired", "fresh"]
    assert await found(0) == ["fresh"]


async def test_a_miss_from_documents_learns_their_languages_with_the_look_up(serve: Service) -> None:
    client = await serve()
    await add(client, "Trains", "The trains to Avignon leave at seven in the morning.")

    async def is_stored() -> bool:
        return bool((await ask(client, "When do the trains to Avignon leave?"))["cache"]["status"] == "hit")

    await wait_until_async(is_stored)  # an answer from an index that is still being filled is not
    with round_trips() as written:
        answered = await ask(client, "At what time do trains leave for Avignon?")
    assert answered["sources"]
    search, in_service = "HGETALL + FT.SEARCH + FT.SEARCH + FT.SEARCH", "HMGET"
    steps = ["answers.find", OF_EMBEDDING, "FT.SEARCH", "flights.join", search, in_service, OF_MODEL, "answers.store"]
    assert awaited(written) == steps
