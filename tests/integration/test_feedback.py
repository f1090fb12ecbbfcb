"""A bad answer leaves the cache on every worker at once; only who got an answer can judge it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.ports.question import AnswerFinished, Query, Timings
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.feedback import Noted, ServedAnswers
from api.values import CacheStatus, FlightKey
from tests.integration.test_documents import HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.replies import text, texts
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.once(reason="what votes do is decided in Redis")

QUESTION, PARAPHRASE, OTHER = "Who approves my holiday?", "my holiday who approves", "Where is the canteen?"
FRESH = {"Cache-Control": "no-cache"}
KEYS = {"api_keys": "acme=acme-1,acme=acme-2,other=other-1", "admin_keys": "root"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def vote(
    client: httpx.AsyncClient, answer: dict[str, Any] | str, verdict: str, *, key: str = "", **more: Any
) -> int:
    request_id = answer if isinstance(answer, str) else answer["request_id"]
    body = {"request_id": request_id, "verdict": verdict, **more}
    response = await client.post("/feedback", json=body, headers=bearer(key) if key else None)
    assert response.status_code != 202 or response.json() == {"recorded": True}
    return response.status_code


async def cached(client: httpx.AsyncClient, question: str, key: str = "", **more: Any) -> str:
    """What the cache would serve."""
    headers = {"Cache-Control": "only-if-cached", **(bearer(key) if key else {})}
    response = await client.post("/query", json={"question": question, **more}, headers=headers)
    return "absent" if response.status_code == 504 else str(response.json()["cache"]["kind"])


@pytest.mark.timed
async def test_a_bad_answer_is_gone_on_the_other_worker_within_100_ms(serve: Service) -> None:
    one, other = await serve(), await serve()
    seconds = []
    for _ in range(3):  # others may have the processor
        await ask(one, QUESTION)
        hit = await ask(one, QUESTION)
        assert hit["cache"]["kind"] == "exact"
        began = time.monotonic()
        assert await vote(one, hit, "bad") == 202
        assert await cached(other, QUESTION) == "absent"
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.1
    again = await ask(other, QUESTION)
    assert again["cache"]["status"] == "miss"
    assert (await ask(one, QUESTION))["cache"]["kind"] == "exact"


@pytest.mark.parametrize("status", ["miss", "exact", "semantic"])
async def test_any_worker_takes_the_vote(serve: Service, status: str) -> None:
    one, other = await serve(), await serve()
    answer = await ask(one, QUESTION)
    if status != "miss":
        answer = await ask(one, QUESTION if status == "exact" else PARAPHRASE)
        assert answer["cache"]["kind"] == status
    assert await vote(other, answer, "bad") == 202
    assert await cached(one, QUESTION) == await cached(other, QUESTION) == "absent"


def noted(request_id: str) -> Noted:
    done = AnswerFinished("Your manager.", "m", CacheStatus.MISS, Timings())
    return request_id, Query(QUESTION, "t", "m"), done, FlightKey("scope", "digest")


async def test_a_vote_waits_for_no_answers_but_its_own(redis: BatchingRedis) -> None:
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    one, other = (ServedAnswers(gate, Keys(), 60_000, lambda _: None) for _ in range(2))
    one.note(noted("judged"))
    await one.flush()
    other.note(noted("another"))
    assert await other.recall("judged", "t", of_any_tenant=False) is not None
    assert not await redis.exists("rag:served:another")
    assert await other.recall("chatcmpl-another", "t", of_any_tenant=False) is not None


async def test_what_went_out_is_written_without_a_vote(serve: Service, redis: Redis) -> None:
    client = await serve()
    answer = await ask(client, QUESTION)

    async def is_written() -> bool:
        return bool(await redis.exists(f"rag:served:{answer['request_id']}"))

    await wait_until_async(is_written)
    (key,) = [key async for key in redis.scan_iter("rag:served:*")]
    assert 3590 <= await redis.ttl(key) <= 3600
    (count,) = [key async for key in redis.scan_iter("rag:stats:served:*")]
    assert (await redis.get(count), 60 < await redis.ttl(count) <= 120) == (b"1", True)


async def test_a_vote_reads_few_keys_however_long_answers_are_kept(serve: Service, redis: Redis) -> None:
    client = await serve(server={"feedback_ttl": 86_400})
    answer = await ask(client, QUESTION)
    assert await vote(client, answer, "good") == 202
    async with redis.monitor() as monitor:
        assert await vote(client, answer, "good") == 202
        assert await vote(client, "nobody-asked", "bad") == 404
        await redis.echo("end")
        read = 0
        while (command := (await monitor.next_command())["command"]) != "ECHO end":
            read += not command.startswith("EVALSHA") and command.count("rag:served:")
    assert 2 <= read <= 6, "two keys for a known answer; for an unknown one, which may be under way, twice two"


async def test_all_answers_together_are_bounded(serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.redis_store.stores.feedback.MOST", 120)
    client = await serve()
    answers = [await ask(client, QUESTION) for _ in range(7)]  # of which at least 3 in one minute: 120 an hour are 2
    await vote(client, answers[-1], "good")
    assert 2 <= len([key async for key in redis.scan_iter("rag:served:*")]) <= 4
    assert await vote(client, answers[0], "good") == 202


async def test_near_copies_go_too_and_nothing_else(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    stub.behaviour(answer="Your manager.", path="/api/chat")
    bad = await ask(one, QUESTION)
    await ask(one, PARAPHRASE, headers=FRESH)
    await ask(one, OTHER)
    await ask(one, QUESTION, tenant="acme")
    await ask(one, QUESTION, options={"seed": 1})
    stub.behaviour(answer="Another answer.", path="/api/chat")
    await ask(one, "Who approves my holiday, please?", headers=FRESH)
    assert await vote(one, bad, "bad") == 202
    # The third question is near, but has another answer, which serves the first two from now on.
    assert (await ask(other, "Who approves my holiday, please?"))["answer"] == "Another answer."
    for question in (QUESTION, PARAPHRASE):
        assert (await ask(other, question))["answer"] == "Another answer."
    assert await cached(other, OTHER) == "exact"
    assert await cached(other, QUESTION, tenant="acme") == "exact"
    assert await cached(other, QUESTION, options={"seed": 1}) == "exact"


async def test_an_expired_bad_answer_is_not_served_as_stale(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(cache={"ttl": 0.01}), await serve(cache={"ttl": 0.01})
    bad = await ask(one, QUESTION)
    assert await vote(one, bad, "bad") == 202
    stub.behaviour("status", status=500, path="/api/chat")
    for question in (QUESTION, PARAPHRASE):
        assert (await other.post("/query", json={"question": question})).status_code == 502


async def test_an_operator_sees_why_and_erases_it(serve: Service, redis: Redis) -> None:
    client = await serve()
    await ask(client, QUESTION)
    hit = await ask(client, PARAPHRASE)
    entry = hit["cache"]["entry"]
    assert await vote(client, hit, "bad", comment="It is the other way round.") == 202
    copy = entry.replace("rag:cache:", "rag:quarantine:")
    assert texts(await redis.zrange("rag:quarantined", 0, -1)) == [copy]
    names = ("question", "status", "request", "entry", "comment", "similarity")
    kept = {name: text(await redis.hget(copy, name)) for name in names}
    assert kept["question"] == QUESTION
    assert (kept["status"], kept["request"], kept["entry"]) == ("semantic", hit["request_id"], entry)
    assert kept["comment"] == "It is the other way round."
    assert float(kept["similarity"]) == pytest.approx(hit["cache"]["similarity"], abs=1e-4)
    assert 0 < await redis.pttl(copy) <= (3600 + 86400) * 1000
    exposed = (await client.get("/metrics")).text
    assert 'ragherd_feedback_total{verdict="bad"} 1.0' in exposed
    assert 'ragherd_cache_quarantines_total{change="quarantined"} 1.0' in exposed
    figures = (await client.get("/api/semantic-cache/metrics")).json()
    assert (figures["cache_size"], figures["quarantined"], figures["feedback_bad"]) == (0, 1, 1)
    gone = await client.delete("/api/semantic-cache", params={"entry": entry})
    assert gone.json()["deleted"] == 1
    assert not await redis.exists(copy)
    assert await vote(client, hit, "good") == 202
    assert await cached(client, QUESTION) == "absent"


@pytest.mark.parametrize("selector", [{"question": QUESTION}, {"tenant": "default"}, {"all": "true"}])
async def test_deletions_erase_quarantined_answers_too(serve: Service, redis: Redis, selector: dict[str, str]) -> None:
    client = await serve()
    assert await vote(client, await ask(client, QUESTION), "bad") == 202
    gone = await client.delete("/api/semantic-cache", params=selector)
    assert gone.json()["deleted"] == 1
    assert [key async for key in redis.scan_iter("rag:quarantine:*")] == []


async def test_a_later_vote_of_the_same_key_replaces_the_former(serve: Service, redis: Redis) -> None:
    one, other = await serve(access=KEYS), await serve(access=KEYS)
    first = await ask(one, QUESTION, headers=bearer("acme-1"))
    second = await ask(one, QUESTION, headers=bearer("acme-2"))
    assert await vote(one, first, "bad", key="acme-1") == 202
    assert await vote(one, second, "bad", key="acme-2") == 202
    assert await vote(one, first, "good", key="acme-1") == 202
    assert await cached(other, QUESTION, "acme-1") == "absent", "the other key's vote is still bad"
    assert await vote(one, second, "good", key="acme-2") == 202
    assert await cached(other, QUESTION, "acme-1") == "exact"
    figures = (await one.get("/api/semantic-cache/metrics")).json()
    assert (figures["feedback_good"], figures["feedback_bad"]) == (2, 0)
    assert await redis.zcard("rag:evict:cache") == 1
    assert not await redis.exists("rag:quarantined")
    assert not await redis.hexists(first["cache"]["entry"], "quarantined_ms")


async def test_votes_count_once_per_key(serve: Service) -> None:
    client = await serve(access=KEYS)
    for _ in range(3):
        hit = await ask(client, QUESTION, headers=bearer("acme-1"))
        assert await vote(client, hit, "good", key="acme-1") == 202
    assert (await client.get("/api/semantic-cache/metrics")).json()["feedback_good"] == 1


async def test_votes_without_room_count_in_no_figure(serve: Service, redis: Redis) -> None:
    client = await serve(access=KEYS)
    hits = [await ask(client, QUESTION, headers=bearer(key)) for key in ("acme-1", "acme-1", "acme-2")]
    assert await vote(client, hits[1], "good", key="acme-1") == 202
    (votes,) = [key async for key in redis.scan_iter("rag:votes:*")]
    await redis.hset(votes, mapping={f"vote:{number}": "good" for number in range(1_000)})
    before = await redis.hgetall(votes)
    for _ in range(3):
        assert await vote(client, hits[2], "good", key="acme-2") == 202
    assert await redis.hgetall(votes) == before
    assert (await client.get("/api/semantic-cache/metrics")).json()["feedback_good"] == 1
    assert await redis.xlen("rag:labels") == 1
    assert await vote(client, hits[2], "bad", key="acme-2") == 202
    assert await cached(client, QUESTION, "acme-1") == "absent", "a bad vote holds in any case"


async def test_a_good_answer_comes_back_with_its_copies(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(answer="Your manager.", path="/api/chat")
    answer = await ask(client, QUESTION)
    await ask(client, PARAPHRASE, headers=FRESH)
    await vote(client, answer, "bad")
    assert [await cached(client, question) for question in (QUESTION, PARAPHRASE)] == ["absent", "absent"]
    await vote(client, answer, "good")
    assert [await cached(client, question) for question in (QUESTION, PARAPHRASE)] == ["exact", "exact"]
    assert (await ask(client, "holiday, who approves my?"))["cache"]["kind"] == "semantic"


async def test_a_released_answer_does_not_replace_a_newer_one(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(answer="of before", path="/api/chat")
    bad = await ask(client, QUESTION)
    await vote(client, bad, "bad")
    stub.behaviour(answer="of after", path="/api/chat")
    assert (await ask(client, QUESTION))["answer"] == "of after"
    await vote(client, bad, "good")
    assert (await ask(client, QUESTION))["answer"] == "of after"
    await vote(client, bad, "bad")
    assert await cached(client, QUESTION) == "exact", "the vote is about the former answer"


async def test_a_released_answer_is_stale_if_documents_came_meanwhile(serve: Service, redis: Redis) -> None:
    client = await serve(embedder=ONNX)
    bad = await ask(client, QUESTION)
    await vote(client, bad, "bad")
    await add(client, "Holiday policy", HOLIDAY)

    async def has_outdated() -> bool:
        return bool(await redis.hexists("rag:invalidated", "corpus:default"))

    await wait_until_async(has_outdated)
    await vote(client, bad, "good")
    assert await redis.exists(bad["cache"]["entry"]), "it is back, for an outage"
    assert await cached(client, QUESTION) == "absent", "new documents find no quarantined answer"


async def test_nobody_judges_what_another_tenant_got(serve: Service) -> None:
    client = await serve(access=KEYS)
    answer = await ask(client, QUESTION, headers={**bearer("acme-1"), "X-Request-ID": "chosen"})
    assert await vote(client, answer, "bad", key="other-1") == 404
    assert await vote(client, answer, "bad", key="other-1", tenant="acme") == 403
    assert await cached(client, QUESTION, "acme-1") == "exact"
    # Another tenant can choose the same request ID, before or after, and takes nothing away.
    theirs = await ask(client, OTHER, headers={**bearer("other-1"), "X-Request-ID": "chosen"})
    assert await vote(client, theirs, "bad", key="other-1") == 202
    assert await cached(client, OTHER, "other-1") == "absent"
    assert await cached(client, QUESTION, "acme-1") == "exact"
    assert await vote(client, answer, "bad", key="acme-2") == 202
    assert await cached(client, QUESTION, "acme-1") == "absent"


async def test_an_admin_and_callers_without_keys_judge_what_any_tenant_got(serve: Service) -> None:
    keyed, free = await serve(access=KEYS), await serve()
    answer = await ask(keyed, QUESTION, headers=bearer("acme-1"))
    assert await vote(keyed, answer, "bad", key="root") == 202
    assert await vote(free, await ask(free, OTHER, tenant="acme"), "bad") == 202
    assert await cached(free, OTHER, tenant="acme") == "absent"
    named = await ask(free, OTHER, tenant="acme")
    assert await vote(free, named, "bad", tenant="other") == 404
    assert await vote(free, named, "bad", tenant="acme") == 202


async def test_unknown_answers_and_those_too_old_are_not_found(serve: Service) -> None:
    client, forgetful = await serve(), await serve(server={"feedback_ttl": 0})
    response = await client.post("/feedback", json={"request_id": "nobody-asked", "verdict": "good"})
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")
    assert await vote(forgetful, await ask(forgetful, QUESTION), "bad") == 404
    assert await cached(client, QUESTION) == "exact"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"verdict": "bad"}, "request_id"),
        ({"request_id": "x"}, "verdict"),
        ({"request_id": "x", "verdict": "awful"}, "verdict"),
        ({"request_id": "x y", "verdict": "bad"}, "request_id"),
        ({"request_id": 7, "verdict": "bad"}, "request_id"),
        ({"request_id": "x", "verdict": "bad", "comment": "c" * 2001}, "comment"),
        ({"request_id": "x", "verdict": "bad", "coment": "c"}, "coment"),
    ],
)
async def test_a_wrong_body_is_refused_and_named(serve: Service, body: dict[str, Any], word: str) -> None:
    response = await (await serve()).post("/feedback", json=body)
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/problem+json")
    assert word in response.json()["detail"]


async def test_the_key_is_checked_before_the_body(serve: Service) -> None:
    client = await serve(access=KEYS)
    response = await client.post("/feedback", content=b"{", headers=bearer("wrong"))
    assert response.status_code == 401


async def test_without_redis_it_says_so(serve: Service, redis_server: Any) -> None:
    client = await serve()
    answer = await ask(client, QUESTION)
    redis_server.kill()
    try:
        refused = await client.post("/feedback", json={"request_id": answer["request_id"], "verdict": "bad"})
    finally:
        redis_server.start()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "Redis" in refused.json()["detail"]


async def test_answers_given_while_redis_was_down_can_be_judged_later(serve: Service, redis_server: Any) -> None:
    client = await serve()
    await ask(client, QUESTION)
    redis_server.kill()
    try:
        answer = await ask(client, OTHER)
        assert answer["cache"]["status"] == "bypass"
    finally:
        redis_server.start()

    async def is_judged() -> bool:
        return await vote(client, answer, "good") == 202

    await wait_until_async(is_judged, timeout=10)


async def test_an_answer_under_way_is_not_stored_back(serve: Service, stub: StubOllama, redis: Redis) -> None:
    one, other = await serve(), await serve()
    stub.behaviour(answer="wrong", path="/api/chat")
    bad = await ask(one, QUESTION)
    stub.behaviour(answer="wrong", delay=0.5, path="/api/chat")
    late = asyncio.create_task(ask(other, QUESTION, headers=FRESH))

    async def has_begun() -> bool:
        return bool(stub.stats["requests"].get("/api/chat") == 2)

    await wait_until_async(has_begun)
    assert await vote(one, bad, "bad") == 202
    assert (await late)["cache"]["entry"] is None
    assert await cached(one, QUESTION) == "absent"


async def test_coalesced_and_streamed_answers_can_be_judged(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    stub.behaviour(delay=0.3, path="/api/chat")
    answers = await asyncio.gather(*(ask(client, QUESTION) for client in (one, other, one, other)))
    shared = [answer for answer in answers if answer["cache"]["status"] == "coalesced"]
    assert len(shared) == 3
    assert await vote(one, shared[0], "good") == 202 or await vote(other, shared[0], "good") == 202
    headers = {"X-Request-ID": "streamed"}
    streamed = await one.post("/query", json={"question": QUESTION, "stream": True}, headers=headers)
    assert "event: done" in streamed.text
    assert await vote(one, "streamed", "bad") == 202
    assert await cached(other, QUESTION) == "absent"


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_answers_of_the_drop_in_endpoints_can_be_judged(serve: Service, path: str) -> None:
    one, other = await serve(), await serve()
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": QUESTION}], "stream": False}
    await one.post(path, json=body)
    hit = await one.post(path, json=body)
    assert "hit" in hit.headers["Cache-Status"]
    request_id = hit.json().get("id") or hit.headers["X-Request-ID"]
    assert await vote(one, request_id, "bad") == 202
    assert "fwd=miss" in (await other.post(path, json=body)).headers["Cache-Status"]


async def test_a_full_minute_takes_no_more(serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.redis_store.stores.feedback.MOST_PER_MINUTE", 2)
    client = await serve()
    answers = [await ask(client, QUESTION) for _ in range(130)]
    assert await vote(client, answers[-1], "good") == 404
    assert await vote(client, answers[0], "good") == 202
    exposed = (await client.get("/metrics")).text.splitlines()
    left_out = next(line for line in exposed if line.startswith("ragherd_feedback_left_out"))
    assert float(left_out.split()[-1]) >= 124  # two minutes at most


async def test_old_quarantines_make_room(serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.redis_store.stores.feedback.MOST_QUARANTINED", 2)
    client = await serve()
    for question in (QUESTION, OTHER, "Which train goes to Vienna?"):
        assert await vote(client, await ask(client, question), "bad") == 202
    kept = texts([key async for key in redis.scan_iter("rag:quarantine:*")])
    assert len(kept) == 2
    assert sorted(kept) == sorted(texts(await redis.zrange("rag:quarantined", 0, -1)))


async def labels(redis: Redis) -> list[tuple[str, str, str, float]]:
    """The labels of the pool: source, verdict, kind, similarity."""
    found: Any = await redis.xrange("rag:labels")
    names = ("source", "verdict", "kind", "similarity")
    read = [[text(fields[name.encode()]) for name in names] for _, fields in found]
    return [(source, verdict, kind, float(similarity)) for source, verdict, kind, similarity in read]


async def test_a_vote_on_a_cached_answer_is_a_label_once_per_key(serve: Service, redis: Redis) -> None:
    client = await serve(access=KEYS)
    fresh = await ask(client, QUESTION, headers=bearer("acme-1"))
    assert await vote(client, fresh, "good", key="acme-1") == 202
    assert await labels(redis) == [], "a fresh answer says nothing about the cache"
    hit = await ask(client, PARAPHRASE, headers=bearer("acme-2"))
    similarity: Any = pytest.approx(hit["cache"]["similarity"], abs=1e-4)
    for _ in range(2):
        assert await vote(client, hit, "good", key="acme-2") == 202
        assert await labels(redis) == [("feedback", "same", "semantic", similarity)]
    assert await vote(client, hit, "bad", key="acme-2") == 202
    assert await labels(redis) == [("feedback", "different", "semantic", similarity)]
    scope = hit["cache"]["entry"].split(":")[2]
    assert await redis.xlen(f"rag:labels:{scope}") == 1
    assert await vote(client, hit, "bad", key="root") == 202
    assert len(await labels(redis)) == 2


async def test_a_bad_vote_that_turns_good_is_undone_on_every_worker(serve: Service, redis: Redis) -> None:
    workers = [await serve(), await serve()]
    await ask(workers[0], QUESTION)
    hit = await ask(workers[0], PARAPHRASE)

    async def known(count: int) -> bool:
        shown = [(await one.get("/api/semantic-cache/quality")).json() for one in workers]
        return [one["labels"]["feedback"] for one in shown] == [count, count]

    assert await vote(workers[0], hit, "bad") == 202
    await wait_until_async(lambda: known(1))
    before = [await _epoch(one) for one in workers]
    assert await vote(workers[1], hit, "good") == 202

    async def have_learned() -> bool:
        return all([await _epoch(one) != was for one, was in zip(workers, before, strict=True)])

    await wait_until_async(have_learned)
    await wait_until_async(lambda: known(1))  # the new vote counts instead of the old one, not beside it
    assert [label[:2] for label in await labels(redis)] == [("feedback", "same")]
    assert [await cached(one, PARAPHRASE) for one in workers] == ["semantic", "semantic"]


async def _epoch(client: httpx.AsyncClient) -> str:
    """Identifies what a worker knows."""
    return str((await client.get("/api/semantic-cache/quality")).json()["at"])


async def test_the_label_of_a_vote_knows_the_answers_nearby(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(answer="Your manager.", path="/api/chat")
    await ask(client, QUESTION)
    stub.behaviour(answer="The personnel office.", path="/api/chat")
    await ask(client, "Who approves my holiday, and my travel?", headers=FRESH)
    hit = await ask(client, PARAPHRASE)
    assert (hit["answer"], hit["cache"]["kind"]) == ("Your manager.", "semantic")
    assert await vote(client, hit, "bad") == 202
    found: Any = await redis.xrange("rag:labels")
    read = [{text(name): text(value) for name, value in fields.items()} for _, fields in found]
    (label,) = [one for one in read if one["source"] == "feedback"]
    assert 0.3 < float(label["other"]) < float(label["similarity"])
    assert float(label["same"]) == 1
    assert 0 < float(label["others"]) < 1


async def test_in_a_cluster(cluster_serve: Service, stub: StubOllama) -> None:
    one, other = await cluster_serve(), await cluster_serve()
    stub.behaviour(answer="Your manager.", path="/api/chat")
    answers = [await ask(one, question, headers=FRESH) for question in (QUESTION, PARAPHRASE, OTHER)]
    assert await vote(one, answers[0], "bad") == 202
    assert [await cached(other, question) for question in (QUESTION, PARAPHRASE, OTHER)] == ["absent"] * 2 + ["exact"]
    assert await vote(other, answers[0], "good") == 202
    assert [await cached(one, question) for question in (QUESTION, PARAPHRASE)] == ["exact"] * 2
    assert await vote(other, answers[1], "bad") == 202
    deleted = await one.delete("/api/semantic-cache", params={"all": True})
    assert deleted.json()["deleted"] == 3
