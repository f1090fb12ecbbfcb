"""The core of Ragherd: workers answer questions and share the answers through Redis. Read this file first.

Each `serve()` starts one more worker of the fleet and returns an HTTP client for it. All workers share one Redis and
one stub of Ollama. The stub answers by repeating the question.
"""

from __future__ import annotations

import httpx
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.replies import fields
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"  # the stub's embeddings ignore word order


async def test_the_language_model_answers_a_new_question(serve: Service) -> None:
    answered = await ask(await serve(), QUESTION)
    assert answered["answer"] == f"echo: {QUESTION}"
    assert answered["cache"]["status"] == "miss"
    assert answered["sources"] == []
    assert answered["usage"]["completion_tokens"] > 0


async def test_the_same_question_is_an_exact_hit_on_every_worker(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    first = await ask(one, QUESTION)
    second = await ask(other, "  how do I reset my   PASSWORD ")
    assert second["cache"]["status"] == "hit"
    assert second["cache"]["kind"] == "exact"
    assert second["answer"] == first["answer"]
    assert second["cache"]["entry"] == first["cache"]["entry"]
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_a_paraphrase_is_a_semantic_hit_on_every_worker(serve: Service) -> None:
    one, other = await serve(), await serve()
    first = await ask(one, QUESTION)
    second = await ask(other, PARAPHRASE)
    assert (second["cache"]["status"], second["cache"]["kind"]) == ("hit", "semantic")
    assert second["cache"]["similarity"] >= 0.92
    assert second["answer"] == first["answer"]


async def test_response_headers_name_the_worker_and_the_cache_status(serve: Service) -> None:
    client = await serve()
    missed = await client.post("/query", json={"question": QUESTION}, headers={"X-Request-ID": "mine-1"})
    assert missed.headers["Cache-Status"] == "ragherd; fwd=miss; stored"
    assert missed.headers["X-Request-ID"] == missed.json()["request_id"] == "mine-1"
    hit = await client.post("/query", json={"question": QUESTION})
    assert hit.headers["Cache-Status"].startswith("ragherd; hit; ttl=3")
    assert hit.headers["Cache-Status"].endswith("; detail=exact")
    assert hit.headers["Age"] == "0"
    workers = (await client.get("/api/workers")).json()["workers"]
    assert [worker["id"] for worker in workers] == [hit.headers["X-Worker"]]


async def test_an_open_breaker_is_open_on_every_worker(serve: Service, stub: StubOllama) -> None:
    one = await serve(breaker={"failure_threshold": 2})
    other = await serve(breaker={"failure_threshold": 2})
    stub.behaviour("status", status=500)
    for number in range(2):
        assert (await one.post("/query", json={"question": f"question {number}"})).status_code == 502
    rejected = await one.post("/query", json={"question": "another"})
    assert rejected.status_code == 503
    assert 1 <= int(rejected.headers["Retry-After"]) <= 60
    assert rejected.headers["Content-Type"] == "application/problem+json"
    metrics = (await other.get("/api/circuit-breaker/metrics")).json()
    assert (metrics["state"], metrics["failure_count"], metrics["store"]) == ("OPEN", 2, "shared")
    assert (await other.post("/query", json={"question": "elsewhere"})).status_code == 503


async def test_cached_answers_are_served_while_the_breaker_is_open(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"failure_threshold": 1})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await client.post("/query", json={"question": "something else"})).status_code == 502
    assert (await ask(client, QUESTION))["cache"]["status"] == "hit"
    assert (await ask(client, PARAPHRASE))["cache"]["status"] == "hit"


async def test_every_worker_reports_the_same_cache_metrics(serve: Service) -> None:
    one, other = await serve(), await serve()
    await ask(one, QUESTION)
    await ask(one, QUESTION)
    await ask(other, PARAPHRASE)

    async def reported() -> list[dict[str, object]]:
        return [(await client.get("/api/semantic-cache/metrics")).json() for client in (other, one)]

    async def are_counted() -> bool:
        return all(figures["hits"] == 2 and figures["misses"] == 1 for figures in await reported())

    await wait_until_async(are_counted, timeout=1)  # workers send their counters to Redis within a second
    for cache in await reported():
        assert (cache["exact_hits"], cache["semantic_hits"], cache["stores"]) == (1, 1, 1)
        assert cache["hit_rate"] == round(2 / 3, 6)
        assert (cache["cache_size"], cache["max_cache_size"], cache["enabled"]) == (1, 1000, True)


async def test_redis_stores_readable_hashes(serve: Service, redis: Redis) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    stored = fields(await redis.hgetall(entry))
    assert stored["question"].decode() == QUESTION
    assert stored["answer"].decode() == f"echo: {QUESTION}"
    assert int(stored["expires_ms"]) - int(stored["created_ms"]) == 3_600_000
    await client.get("/api/circuit-breaker/metrics")
    assert await redis.hget("rag:cb:{ollama}", "state") == b"CLOSED"


async def test_health_reports_each_dependency(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    health = (await client.get("/health")).json()
    assert (health["status"], health["database"], health["ollama"]) == ("healthy", True, True)
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == 200


async def test_prometheus_metrics_are_served(serve: Service) -> None:
    client = await serve()
    await ask(client, QUESTION)
    text = (await client.get("/metrics")).text
    assert 'ragherd_queries_total{kind="none",status="miss"} 1.0' in text


async def test_the_api_serves_its_openapi_description(serve: Service) -> None:
    client: httpx.AsyncClient = await serve()
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/query" in paths
    assert (await client.get("/docs")).status_code == 200
