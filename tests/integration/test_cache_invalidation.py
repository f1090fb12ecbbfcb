"""Deleted answers are gone on every worker at once, by every selector, and no others are deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api import __version__
from api.ports.answer_cache import Selection
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.sweep import RedisCacheSweep
from tests.stub_ollama import StubOllama
from tests.support.replies import fields, raw
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

PATH = "/api/semantic-cache"
QUESTION, PARAPHRASE, OTHER = "Who approves my holiday?", "my holiday who approves", "Where is the canteen?"
ODD_TENANTS = [
    "a",
    "A",
    "a,b",
    "a b",
    "a|b",
    "a\x1fb",
    "{a}",
    "*",
    "@tenant:{a}",
    "-a",
    'a"b\\',
    "ä\u00a0ß",
    "ab" * 100,
]


async def delete(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    response = await client.delete(PATH, params=params)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def status(client: httpx.AsyncClient, question: str, **more: Any) -> str:
    """What the cache has, without changing it."""
    only = {"Cache-Control": "only-if-cached"}
    response = await client.post("/query", json={"question": question, **more}, headers=only)
    return "absent" if response.status_code == 504 else str(response.json()["cache"]["kind"])


async def fill(redis: Redis, count: int, tenant: str) -> None:
    """Entries as the service writes them, the vectors left out, and some that only look alike."""
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(count):
            key = f"rag:cache:aaaaaaaaaa-{'b' * 24}:{number:032x}"
            pipe.hset(key, mapping={"tenant": tenant, "question": f"q{number}", "created_ms": 1, "expires_ms": 2})
            pipe.pexpire(key, 60_000)
            pipe.zadd("rag:evict:cache", {key: number})
        await pipe.execute()
    await redis.pexpire("rag:evict:cache", 60_000)


@pytest.fixture
async def sweep(redis: BatchingRedis) -> RedisCacheSweep:
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    return RedisCacheSweep(gate, Keys())


async def test_a_question_goes_in_every_scope_and_on_every_worker(serve: Service) -> None:
    one, other = await serve(), await serve()
    scopes: list[dict[str, Any]] = [
        {},
        {"model": "nomic-embed-text"},
        {"options": {"seed": 1}},
        {"history": [{"role": "user", "content": "Hello."}]},
        {"tenant": "acme"},
    ]
    for scope in scopes:
        await ask(one, QUESTION, **scope)
    await ask(one, OTHER)
    assert await delete(other, question=f" {QUESTION.upper()} ") == {"matched": 5, "deleted": 5, "dry_run": False}
    assert [await status(one, QUESTION, **scope) for scope in scopes] == ["absent"] * 5
    assert await status(one, OTHER) == "exact"


async def test_a_question_can_be_narrowed_to_a_tenant_and_a_model(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    await ask(client, QUESTION, tenant="acme")
    await ask(client, QUESTION, tenant="acme", model="nomic-embed-text")
    assert (await delete(client, question=QUESTION, tenant="acme", model="LLAMA3.2:latest"))["deleted"] == 1
    assert await status(client, QUESTION) == "exact"
    assert await status(client, QUESTION, tenant="acme") == "absent"
    assert await status(client, QUESTION, tenant="acme", model="nomic-embed-text") == "exact"


async def test_the_neighbourhood_of_a_question_goes_as_far_as_the_similarity_says(serve: Service) -> None:
    client = await serve()
    for question in (QUESTION, PARAPHRASE, OTHER):
        await ask(client, question, headers={"Cache-Control": "no-cache"})
    await ask(client, PARAPHRASE, tenant="acme")
    assert (await delete(client, question=QUESTION, similarity=0.9, tenant="nobody"))["matched"] == 0
    assert (await delete(client, question=QUESTION, similarity=0.9, dry_run=True))["matched"] == 3
    assert (await delete(client, question=QUESTION, similarity=0.9, tenant="default"))["deleted"] == 2
    assert await status(client, QUESTION) == "absent"
    assert await status(client, OTHER) == "exact"
    assert await status(client, PARAPHRASE, tenant="acme") == "exact"


async def test_without_an_embedder_a_neighbourhood_is_refused_and_the_exact_question_goes(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve()
    await ask(client, QUESTION)
    stub.behaviour("status", path="/api/embed")
    refused = await client.delete(PATH, params={"question": PARAPHRASE, "similarity": 0.9})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert (await delete(client, question=QUESTION))["deleted"] == 1


async def test_one_entry_goes_by_its_key_and_no_other_key_ever(serve: Service, redis: Redis) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await ask(client, OTHER)
    await redis.set("rag:mine", "1", px=60_000)
    for foreign in ("rag:mine", "rag:stats:cache", "rag:cache:", "rag:cache:x:y:z", entry + "0"):
        assert (await delete(client, entry=foreign))["deleted"] == 0
    assert await redis.exists("rag:mine")
    assert (await delete(client, entry=entry))["deleted"] == 1
    assert await redis.zscore("rag:evict:cache", entry) is None
    assert await status(client, QUESTION) == "absent"
    assert await status(client, OTHER) == "exact"


async def test_the_answers_of_one_release_go(serve: Service, redis: Redis) -> None:
    client = await serve()
    entries = [(await ask(client, question))["cache"]["entry"] for question in (QUESTION, OTHER)]
    assert await redis.hget(entries[0], "release") == __version__.encode()
    await redis.hset(entries[1], "release", "9.9.9")
    old = (await ask(client, "Third?"))["cache"]["entry"]
    await redis.hdel(old, "release")  # an entry of a release that did not write it
    assert (await delete(client, release="9.9", dry_run=True))["matched"] == 0
    assert (await delete(client, release="9.9.9", dry_run=True))["matched"] == 1
    assert (await delete(client, release="9.9.9"))["deleted"] == 1
    assert [await status(client, question) for question in (QUESTION, OTHER, "Third?")] == ["exact", "absent", "exact"]


async def test_the_answers_since_a_time_go(serve: Service, redis: Redis) -> None:
    client = await serve()
    before = (await ask(client, QUESTION))["cache"]["entry"]
    created = int(raw(await redis.hget((await ask(client, OTHER))["cache"]["entry"], "created_ms")))
    assert int(raw(await redis.hget(before, "created_ms"))) < created
    assert (await delete(client, since=created + 1))["matched"] == 0
    assert (await delete(client, since=created))["deleted"] == 1
    assert [await status(client, question) for question in (QUESTION, OTHER)] == ["exact", "absent"]
    refused = await client.delete(PATH, params={"since": "yesterday"})
    assert refused.status_code == 422
    assert "RFC 3339" in refused.text
    assert (await delete(client, since=0))["deleted"] == 1


async def test_all_answers_that_cite_a_document_go(serve: Service, redis: Redis) -> None:
    client = await serve()
    cited = {QUESTION: ["hand,book", "a"], OTHER: ["handbook"], "Third?": []}
    for question, documents in cited.items():
        entry = (await ask(client, question))["cache"]["entry"]
        text = '"document_id":"a" is what it says'
        facts = [{"document_id": d, "title": "t", "chunk": 0, "text": text, "score": 1.0} for d in documents]
        await redis.hset(entry, "sources", orjson.dumps(facts))
    assert (await delete(client, source="hand"))["matched"] == 0
    assert (await delete(client, source="a", dry_run=True))["matched"] == 1
    assert (await delete(client, source="hand,book"))["deleted"] == 1
    assert [await status(client, question) for question in cited] == ["absent", "exact", "exact"]


async def test_no_tenants_deletion_reaches_another_whatever_their_names(serve: Service) -> None:
    client = await serve()
    for tenant in ODD_TENANTS:
        await ask(client, QUESTION, tenant=tenant)
    for number, tenant in enumerate(ODD_TENANTS):
        assert (await delete(client, tenant=tenant))["deleted"] == 1, tenant
        left = [await status(client, QUESTION, tenant=each) for each in ODD_TENANTS]
        assert left == ["absent"] * (number + 1) + ["exact"] * (len(ODD_TENANTS) - number - 1)


async def test_all_goes_but_for_what_is_no_answer(serve: Service, redis: Redis) -> None:
    client = await serve()
    await ask(client, QUESTION)
    await ask(client, OTHER, tenant="acme")
    await redis.set("rag:cache:no-hash:0", "1", px=60_000)
    assert await delete(client, all=True, dry_run=True) == {"matched": 2, "deleted": 0, "dry_run": True}
    assert (await delete(client, all=True))["deleted"] == 2
    assert await redis.exists("rag:cache:no-hash:0")
    assert await redis.zcard("rag:evict:cache") == 0
    figures = (await client.get(f"{PATH}/metrics")).json()
    assert (figures["invalidations"], figures["cache_size"]) == (2, 0)
    exposed = (await client.get("/metrics")).text
    assert 'ragherd_semantic_cache_invalidations_total{kind="all"} 2.0' in exposed


async def test_what_was_deleted_is_not_served_as_stale_either(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"ttl": 0.01})
    await ask(client, QUESTION)
    await delete(client, all=True)
    stub.behaviour("status", status=500, path="/api/chat")
    for question in (QUESTION, PARAPHRASE):
        assert (await client.post("/query", json={"question": question})).status_code == 502


async def test_entries_of_another_embedder_go_too(serve: Service, stub: StubOllama) -> None:
    await ask(await serve(), QUESTION)
    stub.behaviour(digest="sha256:0ther")
    changed = await serve()
    await ask(changed, QUESTION)
    assert (await delete(changed, question=QUESTION, similarity=0.9))["deleted"] == 2


async def test_ten_thousand_entries_of_a_tenant_go_and_redis_goes_on_answering(
    redis: Redis, sweep: RedisCacheSweep
) -> None:
    await fill(redis, 10_000, "acme")
    other = f"rag:cache:aaaaaaaaaa-{'c' * 24}:{0:032x}"
    await redis.hset(other, mapping={"tenant": "globex", "created_ms": 1})
    await redis.config_resetstat()
    dry = await sweep.sweep(Selection(tenant="acme"), dry_run=True)
    assert (dry.matched, dry.deleted) == (10_000, 0)
    swept = await sweep.sweep(Selection(tenant="acme"), dry_run=False)
    assert (swept.matched, swept.deleted) == (10_000, 10_000)
    assert await redis.exists(other)
    assert await redis.zcard("rag:evict:cache") == 0
    figures = await redis.info("commandstats")
    assert "cmdstat_keys" not in figures
    assert figures["cmdstat_scan"]["usec_per_call"] < 20_000  # of a thousand keys


async def test_a_deletion_that_runs_out_of_time_says_so(
    serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisCacheSweep.__init__, "__defaults__", (0.0,))
    client = await serve()
    await fill(redis, 3, "acme")
    refused = await client.delete(PATH, params={"tenant": "acme"})
    assert refused.status_code == 503
    assert (refused.json()["matched"], refused.json()["deleted"]) == (0, 0)


async def test_answers_under_way_are_marked_before_anything_is_deleted(serve: Service, redis: Redis) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    scope, digest = entry.removeprefix("rag:cache:").split(":")
    flights = [f"rag:flight:{{{scope}:{digest}}}", f"rag:flight:{{{'0' * 10}-{'0' * 24}:{digest}}}"]
    for flight in flights:
        await redis.hset(flight, "leader", "somebody")
        await redis.pexpire(flight, 60_000)
    await delete(client, question=QUESTION, dry_run=True)
    assert await redis.hkeys("rag:invalidated") == [b"began"]
    for named in ({"question": QUESTION}, {"source": "d1"}, {"tenant": "a,b"}, {"all": True}):
        await delete(client, **named)
    assert await redis.exists(*flights) == 0
    noted = {name: int(at) for name, at in fields(await redis.hgetall("rag:invalidated")).items()}
    assert set(noted) == {"began", f"question:{digest}", "source:d1", "tenant:a,b", "all"}
    seconds, _ = await redis.time()
    assert all(abs(at / 1000 - seconds) < 10 for at in noted.values())
    assert 0 < await redis.ttl("rag:invalidated") <= 3600


async def test_old_marks_go_with_the_next(redis: Redis, sweep: RedisCacheSweep) -> None:
    await redis.hset("rag:invalidated", mapping={"tenant:old": "1", "began": "1"})
    await sweep.sweep(Selection(tenant="new"), dry_run=False)
    assert await redis.hkeys("rag:invalidated") == [b"began", b"tenant:new"]


@pytest.mark.parametrize(
    "named", [{"all": True}, {"tenant": "default"}, {"question": QUESTION}, {"release": __version__}, {"since": 1}]
)
async def test_a_generation_under_way_does_not_bring_its_answer_back(
    serve: Service, stub: StubOllama, named: dict[str, Any]
) -> None:
    one, other = await serve(), await serve()
    stub.behaviour(delay=0.3, path="/api/chat")
    asking = asyncio.create_task(ask(one, QUESTION))
    await wait_until_async(lambda: _is_generating(stub))
    await delete(other, **named)
    assert (await asking)["cache"]["entry"] is None
    assert await status(other, QUESTION) == "absent"
    stub.behaviour()
    assert (await ask(other, QUESTION))["cache"]["entry"] is not None


async def _is_generating(stub: StubOllama) -> bool:
    return bool(stub.stats["requests"].get("/api/chat"))


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({}, "received none"),
        ({"all": "false"}, "received none"),
        ({"all": "true", "tenant": "a"}, "tenant, all"),
        ({"entry": "rag:cache:a:b", "source": "d"}, "entry, source"),
        ({"tenant": "a", "similarity": "0.9"}, "similarity"),
        ({"tenant": "a", "model": "m"}, "model"),
        ({"question": "q", "similarity": "1.1"}, "similarity"),
        ({"question": "q", "similarity": "0"}, "similarity"),
        ({"question": "q", "similarity": "nan"}, "similarity"),
        ({"question": " "}, "question"),
        ({"tenant": "a", "questoin": "q"}, "questoin"),
        ({"tenant": ["a", "b"]}, "twice"),
        ({"all": "perhaps"}, "all"),
    ],
)
async def test_what_is_not_clear_is_refused(serve: Service, params: dict[str, Any], word: str) -> None:
    client = await serve()
    await ask(client, QUESTION)
    refused = await client.delete(PATH, params=params)
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, "application/problem+json")
    assert word in refused.json()["detail"]
    assert await status(client, QUESTION) == "exact"


async def test_it_is_an_admins_right(serve: Service) -> None:
    client = await serve(access={"api_keys": "acme=a-key", "admin_keys": "root-key"})
    for key, expected in (("wrong", 401), ("a-key", 403), ("root-key", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await client.delete(PATH, params={"all": True}, headers=headers)).status_code == expected


async def test_without_redis_it_fails_rather_than_pretend(serve: Service, redis_server: Any) -> None:
    client = await serve()
    redis_server.kill()
    try:
        deletion = await client.delete(PATH, params={"all": True})
        warm_up = await client.post(f"{PATH}/warm", json={"questions": [QUESTION]})
    finally:
        redis_server.start()
    for refused in (deletion, warm_up):
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    "by",
    [{"all": "true"}, {"tenant": "default"}, {"question": QUESTION}, {"release": __version__}, {"since": "1"}],
    ids=lambda by: next(iter(by)),
)
async def test_who_asks_after_a_deletion_shares_no_answer_of_before(
    serve: Service, stub: StubOllama, by: dict[str, str]
) -> None:
    one, other = await serve(), await serve()
    stub.behaviour(delay=1.0, answer="of before", path="/api/chat")
    before = asyncio.create_task(ask(one, QUESTION))

    async def begun() -> bool:
        return bool(stub.stats["requests"].get("/api/chat") == 1)

    await wait_until_async(begun)
    await delete(other, **by)
    stub.behaviour(answer="of after")
    after = await asyncio.gather(*(ask(client, QUESTION) for client in (one, other, one)))
    assert {answer["answer"] for answer in after} == {"of after"}
    assert (await before)["answer"] == "of before"
    assert (await ask(one, QUESTION))["answer"] == "of after"


async def test_answers_that_cite_documents_with_a_tag_are_deleted(serve: Service) -> None:
    """Only those of one tenant, and only counted in a dry run."""
    client = await serve()
    holiday, canteen = ("hr", "My holiday: the team lead approves it."), ("it", "The canteen is on the third floor.")
    for tenant, (tag, text) in (("a", holiday), ("a", canteen), ("b", holiday)):
        made = await client.post("/documents", json={"title": tag, "text": text, "tags": [tag], "tenant": tenant})
        assert made.status_code == 201
    asked = [("a", QUESTION), ("a", OTHER), ("b", QUESTION)]
    for tenant, question in asked:
        assert len((await ask(client, question, tenant=tenant, top_k=1))["sources"]) == 1
    assert (await delete(client, tag="hr", tenant="a", dry_run=True))["matched"] == 1
    assert (await delete(client, tag="hr", tenant="a")) == {"matched": 1, "deleted": 1, "dry_run": False}
    assert [await status(client, question, tenant=of, top_k=1) for of, question in asked] == [
        "absent",
        "exact",
        "exact",
    ]
    assert (await delete(client, tag="nothing", tenant="a"))["matched"] == 0
