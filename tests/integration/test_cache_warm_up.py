"""Warm-ups run behind user requests, resume when their worker dies, and do not count in user-facing figures."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis as sync_redis
from redis.asyncio import Redis

from api.query.warm_up import WarmQuestion
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.warm_up_jobs import RedisWarmUpJobs
from tests.stub_ollama import StubOllama, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.once(reason="the jobs live in Redis")

PATH = "/api/semantic-cache/warm"
JOB = "0123456789abcdef"
QUESTIONS = [f"{name}, what is it?" for name in ("Paris", "Gravity", "Yeast", "Chess", "Basalt", "Vellum")]


async def begin(client: httpx.AsyncClient, questions: list[Any], **more: Any) -> str:
    response = await client.post(PATH, json={"questions": questions, **more})
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"{PATH}/{response.json()['id']}"
    return str(response.headers["Location"])


async def ended(client: httpx.AsyncClient, location: str, timeout: float = 20) -> dict[str, Any]:
    progress: dict[str, Any] = {}

    async def over() -> bool:
        progress.update((await client.get(location)).json())
        return bool(progress["status"] != "running")

    await wait_until_async(over, timeout=timeout)
    return progress


async def done_at_least(client: httpx.AsyncClient, location: str, count: int) -> bool:
    return bool((await client.get(location)).json()["done"] >= count)


def counts(progress: dict[str, Any]) -> dict[str, int]:
    return {name: progress[name] for name in ("total", "done", "generated", "stored", "skipped", "failed")}


async def test_questions_are_answered_before_anybody_asks_them(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    await ask(one, QUESTIONS[0])
    location = await begin(one, QUESTIONS)
    progress = await ended(other, location)
    assert progress["status"] == "done"
    assert counts(progress) == {"total": 6, "done": 6, "generated": 5, "stored": 5, "skipped": 1, "failed": 0}
    assert progress["started"] <= progress["ended"]
    assert stub.stats["requests"]["/api/chat"] == 6
    for question in QUESTIONS:
        assert (await ask(other, question))["cache"]["kind"] == "exact"
    assert (await ask(other, "what is it Gravity"))["cache"]["kind"] == "semantic"


async def test_answers_that_are_given_are_stored_as_they_are(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"warm_concurrency": 1})
    await ask(client, QUESTIONS[0], tenant="acme")
    given = {"question": QUESTIONS[0], "answer": "A city."}
    other = {"question": QUESTIONS[1], "answer": "A force.", "tenant": "globex", "options": {"seed": 1}, "top_k": 0}
    progress = await ended(client, await begin(client, [given, given, other], tenant="acme"))
    assert counts(progress) == {"total": 3, "done": 3, "generated": 0, "stored": 2, "skipped": 1, "failed": 0}
    assert stub.stats["requests"]["/api/chat"] == 1
    warmed = await ask(client, QUESTIONS[0], tenant="acme")
    assert (warmed["answer"], warmed["sources"], warmed["cache"]["status"]) == ("A city.", [], "hit")
    assert (await ask(client, QUESTIONS[1], tenant="globex", options={"seed": 1}, top_k=0))["answer"] == "A force."
    assert (await ask(client, QUESTIONS[1], tenant="globex"))["cache"]["status"] == "miss"


@pytest.mark.parametrize("kind", ["application/jsonl", "application/x-ndjson; charset=utf-8"])
async def test_json_lines_are_taken_too(serve: Service, kind: str) -> None:
    client = await serve()
    lines = [orjson.dumps(QUESTIONS[0]), b"", orjson.dumps({"question": QUESTIONS[1], "answer": "A force.\u2028"})]
    response = await client.post(PATH, content=b"\r\n".join(lines) + b"\n", headers={"Content-Type": kind})
    progress = await ended(client, response.headers["Location"])
    assert counts(progress) == {"total": 2, "done": 2, "generated": 1, "stored": 2, "skipped": 0, "failed": 0}


async def test_it_counts_in_no_figure_of_what_users_ask(serve: Service) -> None:
    client = await serve()
    await ended(client, await begin(client, QUESTIONS))
    figures = (await client.get("/api/semantic-cache/metrics")).json()
    assert (figures["hits"], figures["misses"], figures["stores"]) == (0, 0, 6)
    exposed = (await client.get("/metrics")).text
    assert 'ragherd_queries_total{kind="none",status="miss"} 0.0' in exposed
    assert "ragherd_cache_stores_total 6.0" in exposed


async def test_users_come_first(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1}, cache={"warm_concurrency": 6})
    stub.behaviour(delay=0.2, path="/api/chat")
    location = await begin(client, QUESTIONS)

    async def are_in_line() -> bool:
        return bool((await client.get("/api/bulkhead/metrics")).json()["waiting"] == 5)

    await wait_until_async(are_in_line)
    await asyncio.gather(*(ask(client, f"A user's question of {name}?") for name in ("salt", "ink")))
    assert (await client.get(location)).json()["done"] <= 2  # one was under way, one may have ended since
    assert (await ended(client, location))["stored"] == 6


async def test_an_open_breaker_is_waited_out_and_burns_no_question(serve: Service) -> None:
    client = await serve(breaker={"timeout": 0.2})
    await client.post("/api/circuit-breaker/force-open", params={"breaker": "ollama"})
    location = await begin(client, QUESTIONS)

    async def has_rejected() -> bool:
        return bool((await client.get("/api/circuit-breaker/metrics")).json()["rejected_calls"] >= 4)

    await wait_until_async(has_rejected)
    assert (await client.get(location)).json()["done"] == 0
    await client.post("/api/circuit-breaker/reset")
    progress = await ended(client, location)
    assert (progress["stored"], progress["failed"]) == (6, 0)


async def test_while_ollama_is_away_no_question_is_burnt(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"failure_threshold": 2, "timeout": 0.2})
    await ask(client, "Are you there?")
    await stub.refuse()
    location = await begin(client, QUESTIONS)

    async def is_open() -> bool:
        breakers = (await client.get("/api/circuit-breaker/metrics")).json()["breakers"]
        return bool(breakers["ollama-embed"]["state"] == "OPEN")

    await wait_until_async(is_open)
    assert (await client.get(location)).json()["done"] == 0
    await stub.listen()
    progress = await ended(client, location)
    assert (progress["stored"], progress["failed"]) == (6, 0)


async def test_questions_that_can_not_be_answered_are_counted_and_the_rest_go_on(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(cache={"warm_concurrency": 1})
    stub.behaviour(models=["llama3.2:latest", "nomic-embed-text:latest"])
    wanted = [{"question": QUESTIONS[0], "model": "no-such"}, QUESTIONS[1]]
    progress = await ended(client, await begin(client, wanted))
    assert counts(progress) == {"total": 2, "done": 2, "generated": 1, "stored": 1, "skipped": 0, "failed": 1}
    assert progress["errors"] == [f"{QUESTIONS[0]}: model 'no-such' not found: run `ollama pull no-such`"]
    stub.behaviour(answer=" ")
    progress = await ended(client, await begin(client, [{"question": f"{number}?"} for number in range(12)]))
    assert (progress["status"], progress["failed"], len(progress["errors"])) == ("done", 12, 10)


async def test_any_worker_can_cancel_it(serve: Service, stub: StubOllama, redis: Redis) -> None:
    one, other = await serve(), await serve()
    stub.behaviour("hang", path="/api/chat")
    location = await begin(one, QUESTIONS)
    await wait_until_async(lambda: _in_flight(stub, 2))
    cancelled = await other.delete(location)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    await wait_until_async(lambda: _in_flight(stub, 0))
    stub.behaviour()
    assert (await ended(one, location))["done"] == 0
    assert (await other.delete(location)).json()["status"] == "cancelled"
    assert await redis.keys("rag:warm:*:queue") == []
    next_one = await ended(other, await begin(other, QUESTIONS[:1]))
    assert next_one["stored"] == 1


async def _in_flight(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["in_flight"] == count)


async def test_a_worker_that_leaves_hands_it_on(redis: Redis, redis_url: str, stub: StubOllama) -> None:
    settings = make_settings(redis_url, stub.base_url)
    stub.behaviour(delay=0.1, path="/api/chat")
    async with running_service(settings) as other:
        async with running_service(settings) as one:
            location = await begin(one, QUESTIONS)
            await wait_until_async(lambda: done_at_least(one, location, 1))
        progress = await ended(other, location)
    assert (progress["status"], progress["done"], progress["failed"]) == ("done", 6, 0)
    assert progress["generated"] + progress["skipped"] == 6


async def test_what_a_dead_worker_left_is_resumed_once_its_lease_has_ended(
    serve: Service, redis: BatchingRedis
) -> None:
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    dead, late = (RedisWarmUpJobs(gate, Keys(), worker) for worker in ("dead", "late"))
    questions = [WarmQuestion(number, text, "default", "llama3.2").encoded() for number, text in enumerate(QUESTIONS)]
    await dead.create(JOB, questions)
    assert await dead.acquire(JOB, 5.0)
    assert not await late.acquire(JOB, 5.0)
    await redis.delete("rag:warm:jobs")
    assert await dead.acquire(JOB, 5.0)
    assert await late.unfinished() == [JOB]
    assert await dead.settle(JOB, questions[0], ("generated", "stored"))
    await redis.hset(f"rag:warm:{JOB}", "held_until_ms", "1")
    client = await serve()
    progress = await ended(client, f"{PATH}/{JOB}")
    assert counts(progress) == {"total": 6, "done": 6, "generated": 6, "stored": 6, "skipped": 0, "failed": 0}
    assert progress["by"] not in {"dead", "late"}
    assert not await dead.acquire(JOB, 5.0)
    assert await redis.exists("rag:warm:jobs") == 0


async def test_a_question_counts_once_whoever_settles_it(redis: BatchingRedis) -> None:
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    one, other = (RedisWarmUpJobs(gate, Keys(), worker) for worker in ("one", "other"))
    await one.create(JOB, [b"first", b"second"])
    assert await one.settle(JOB, b"first", ("failed",), "it can not")
    assert await other.settle(JOB, b"first", ("failed",), "it can not")
    assert await other.left(JOB, 10) == [b"second"]
    assert not await other.settle(JOB, b"second", ("stored",))
    assert not await one.settle(JOB, b"second", ("stored",))
    progress = await one.progress(JOB)
    assert progress is not None
    assert (progress.status, progress.done, progress.stored, progress.failed) == ("done", 2, 1, 1)
    assert progress.errors == ("it can not",)


@pytest.mark.processes
def test_a_worker_that_is_killed_is_succeeded(redis_url: str, tmp_path: Path) -> None:
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with stub_process() as stub, gunicorns("api.asgi:app", tmp_path) as begin_replica:
        stub.behaviour(delay=0.2, path="/api/chat")
        settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": stub.base_url, "REDIS_TIMEOUT": "1"}
        replicas = [begin_replica(**settings, OLLAMA_WARM_UP="false", METRICS_PORT=free_port()) for _ in range(2)]

        def progress(replica: Gunicorn) -> dict[str, Any]:
            found: dict[str, Any] = replica.get(location).json()
            return found

        begun = replicas[0].client.post(f"{replicas[0].url()}{PATH}", json={"questions": QUESTIONS})
        location = begun.headers["Location"]
        wait_until(lambda: progress(replicas[1])["done"] >= 1)
        holder = progress(replicas[1])["by"]
        pid = int(holder.split("-")[-2])
        survivor = next(replica for replica in replicas if pid not in replica.workers())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: progress(survivor)["status"] == "done", timeout=30)
        ended = progress(survivor)
        assert ended["by"] != holder
        assert (ended["done"], ended["failed"]) == (6, 0)
        assert ended["stored"] + ended["skipped"] == 6
        assert stub.stats["requests"]["/api/chat"] <= 6 + 2  # what the dead one had under way is asked again


async def test_questions_that_redis_lost_are_not_waited_for(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    stub.behaviour(delay=0.3, path="/api/chat")
    location = await begin(client, QUESTIONS)
    await wait_until_async(lambda: _in_flight(stub, 2))
    await redis.delete(f"rag:warm:{location.rpartition('/')[2]}:queue")
    progress = await ended(client, location)
    assert (progress["status"], progress["errors"]) == ("failed", ["the questions that were left are lost"])
    assert (await ended(client, await begin(client, QUESTIONS[:1])))["status"] == "done"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "questions"),
        ({"questions": []}, "questions"),
        ({"questions": "Who?"}, "questions"),
        ({"questions": ["ok", " "]}, "questions.1.question"),
        ({"questions": ["ok", 7]}, "questions.1"),
        ({"questions": [{"question": "ok", "anser": "x"}]}, "questions.0.anser"),
        ({"questions": [{"question": "ok", "answer": " "}]}, "questions.0.answer"),
        ({"questions": [{"question": "ok", "options": {"num_ctx": 1}}]}, "questions.0.options.num_ctx"),
        ({"questions": ["ok"], "tenants": "a"}, "tenants"),
        ({"questions": ["q"] * 10_001}, "questions"),
        (["ok"], ""),
    ],
)
async def test_what_is_no_list_of_questions_is_refused(
    serve: Service, redis: Redis, body: dict[str, Any], field: str
) -> None:
    refused = await (await serve()).post(PATH, json=body)
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, "application/problem+json")
    assert refused.json()["errors"][0]["field"] == field
    assert await redis.keys("rag:warm:*") == []


@pytest.mark.parametrize("kind", ["application/json", "application/jsonl"])
async def test_what_is_no_json_is_refused(serve: Service, kind: str) -> None:
    refused = await (await serve()).post(PATH, content=b'"ok"\n{"question', headers={"Content-Type": kind})
    assert refused.status_code == 422
    assert "not valid JSON" in refused.json()["detail"]


async def test_it_is_an_admins_right(serve: Service) -> None:
    client = await serve(access={"api_keys": "acme=a-key", "admin_keys": "root-key"})
    for key, expected in (("wrong", 401), ("a-key", 403)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await client.post(PATH, content=b"{", headers=headers)).status_code == expected
        assert (await client.get(f"{PATH}/x", headers=headers)).status_code == expected
        assert (await client.delete(f"{PATH}/x", headers=headers)).status_code == expected
    admin = {"Authorization": "Bearer root-key"}
    assert (await client.post(PATH, json={"questions": ["?"]}, headers=admin)).status_code == 202


async def test_what_is_not_there_is_not_found(serve: Service) -> None:
    client = await serve()
    assert (await client.get(f"{PATH}/nope")).status_code == 404
    assert (await client.delete(f"{PATH}/nope")).status_code == 404


async def test_a_cache_that_is_switched_off_can_not_be_warmed(serve: Service) -> None:
    client = await serve(cache={"enabled": False})
    assert (await client.post(PATH, json={"questions": ["?"]})).status_code == 503
