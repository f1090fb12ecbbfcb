"""Requests leave nothing that only the garbage collector frees. It runs rarely, and until then a worker grows."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.garbage import garbage
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.slow_proxy import slow_proxy
from tests.support.waiting import eventually, wait_until_async

TIMES = 10
NUMBERS = count()
MODEL = "llama3.2"
TO_OPENAI = "/v1/chat/completions?forwarded"
"""The one that goes to that path of Ollama's."""


def has_landed() -> bool:
    """Returns whether no flight goes on after its callers."""
    return all(task.get_name() != "flight" for task in asyncio.all_tasks())


def fresh() -> str:
    return f"What is the price of the item {next(NUMBERS)} in the shop?"


async def misses(client: httpx.AsyncClient, stub: StubOllama) -> None:
    await ask(client, fresh())


async def repeats(client: httpx.AsyncClient, stub: StubOllama) -> None:
    await ask(client, "Who approves my holiday?")


async def streams(client: httpx.AsyncClient, stub: StubOllama) -> None:
    response = await client.post("/query", json={"question": fresh(), "stream": True})
    assert response.status_code == 200, response.text


async def chats(client: httpx.AsyncClient, stub: StubOllama) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": fresh()}]}
    assert (await client.post("/api/chat", json=body)).status_code == 200
    assert (await client.post("/v1/chat/completions", json=body | {"stream": True})).status_code == 200


async def embeddings(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for path in ("/api/embed", "/v1/embeddings"):
        response = await client.post(path, json={"model": "nomic-embed-text", "input": fresh()})
        assert response.status_code == 200, response.text


async def uploads(client: httpx.AsyncClient, stub: StubOllama) -> None:
    number = next(NUMBERS)
    body = {"title": "Prices", "text": f"The price is {number} euros.", "source": "prices"}
    response = await client.post("/documents", json=body)
    assert response.status_code in (200, 201), response.text


async def refused_bodies(client: httpx.AsyncClient, stub: StubOllama) -> None:
    assert (await client.post("/query", json={"question": 5})).status_code == 422
    assert (await client.post("/query", content=b"{")).status_code in (400, 422)
    assert (await client.get("/nothing")).status_code == 404


async def upstream_faults(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for path, body in every_way_to_ask().items():
        stub.behaviour("status", path="/v1/chat/completions" if path == TO_OPENAI else "/api/chat")
        await asks_in_vain(client, path, body)
    stub.behaviour()


async def asks_in_vain(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    """Asks a question that Ollama cannot answer, which is no breaker's fault."""
    response = await client.post(path, json=body)
    is_streamed = response.status_code == 200 and "error" in response.text
    assert is_streamed or response.status_code == 502, (path, response.text)
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


def every_way_to_ask() -> dict[str, dict[str, Any]]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": fresh()}]}
    return {
        "/query": {"question": fresh()},
        "/query?streamed": {"question": fresh(), "stream": True},
        "/api/chat": body,
        "/api/chat?forwarded": body | {"tools": [TOOL]},
        "/v1/chat/completions": body | {"stream": True},
        TO_OPENAI: body | {"tools": [TOOL]},
        "/api/generate": {"model": MODEL, "prompt": fresh()},
    }


async def answers_cut_off(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for mode in ("close", "cut", "error_line", "no_done"):
        stub.behaviour(mode, path="/api/chat")
        for path, body in every_way_to_ask().items():
            if path != TO_OPENAI:
                await asks_in_vain(client, path, body)
    stub.behaviour()


async def refused_connections(client: httpx.AsyncClient, stub: StubOllama) -> None:
    await stub.refuse()
    for path, body in every_way_to_ask().items():
        await asks_in_vain(client, path, body)
    await stub.listen()


async def answers_that_are_late(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(mode="hang", path="/api/chat")
    response = await client.post("/query", json={"question": fresh()}, headers={"X-Request-Timeout": "0.05"})
    assert response.status_code == 504, response.text
    stub.behaviour()
    stub.break_connections()
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def an_ollama_that_hangs(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("hang")
    response = await client.post("/query", json={"question": fresh()})
    assert response.status_code == 504, response.text
    stub.behaviour()
    stub.break_connections()
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def calls_to_an_open_breaker(client: httpx.AsyncClient, stub: StubOllama) -> None:
    (await client.post("/api/circuit-breaker/force-open")).raise_for_status()
    response = await client.post("/query", json={"question": fresh()})
    assert response.status_code == 503, response.text
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def every_api_while_the_breaker_is_open(client: httpx.AsyncClient, stub: StubOllama) -> None:
    (await client.post("/api/circuit-breaker/force-open")).raise_for_status()
    for stream in (True, False):
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": fresh()}], "stream": stream}
        for path in ("/api/chat", "/v1/chat/completions"):
            for given in (body, body | {"tools": [TOOL]}):
                response = await client.post(path, json=given)
                assert response.status_code == 503, response.text
        questions: dict[str, dict[str, Any]] = {
            "/query": {"question": fresh(), "stream": stream},
            "/api/generate": {"model": MODEL, "prompt": fresh(), "stream": stream},
            "/v1/completions": {"model": MODEL, "prompt": fresh(), "stream": stream},
        }
        for path, given in questions.items():
            response = await client.post(path, json=given)
            assert response.status_code == 503, (path, response.text)
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def expired_answers_while_the_breaker_is_open(client: httpx.AsyncClient, stub: StubOllama) -> None:
    question = fresh()
    await ask(client, question)
    (await client.post("/api/circuit-breaker/force-open")).raise_for_status()

    async def is_stale() -> bool:
        response = await client.post("/query", json={"question": question})
        return response.status_code == 200 and response.json()["cache"]["status"] == "stale"

    await wait_until_async(is_stale)
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def refreshes_that_fail(client: httpx.AsyncClient, stub: StubOllama) -> None:
    question = fresh()
    await ask(client, question)
    stub.behaviour("status", path="/api/chat")
    asked = stub.stats["requests"]["/api/chat"]

    async def is_refreshed() -> bool:
        response = await client.post("/query", json={"question": question})
        return response.status_code == 200 and stub.stats["requests"]["/api/chat"] > asked

    await wait_until_async(is_refreshed)
    stub.behaviour()
    (await client.post("/api/circuit-breaker/reset")).raise_for_status()


async def warm_ups(client: httpx.AsyncClient, stub: StubOllama) -> None:
    response = await client.post("/api/semantic-cache/warm", json={"questions": [fresh()]})
    job = response.headers["Location"]

    async def is_over() -> bool:
        return bool((await client.get(job)).json()["status"] != "running")

    await wait_until_async(is_over)


async def lists_of_models(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for path in ("/api/tags", "/api/ps", "/api/version", "/v1/models"):
        assert (await client.get(path)).status_code == 200
    assert (await client.post("/api/show", json={"model": MODEL})).status_code == 200


async def changes_of_models(client: httpx.AsyncClient, stub: StubOllama) -> None:
    response = await client.post("/api/pull", json={"model": MODEL})
    assert response.status_code == 200, response.text


async def forwarded_requests(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for stream in (True, False):
        body = {"model": MODEL, "messages": [{"role": "user", "content": fresh()}], "tools": [TOOL], "stream": stream}
        for path in ("/api/chat", "/v1/chat/completions"):
            response = await client.post(path, json=body)
            assert response.status_code == 200, response.text


async def documents_in_and_out(client: httpx.AsyncClient, stub: StubOllama) -> None:
    number = next(NUMBERS)
    files = {"file": ("prices.md", f"# Prices {number}\n\nIt is {number} euros.".encode(), "text/markdown")}
    response = await client.post("/documents", files=files)
    assert response.status_code == 201, response.text
    document = response.json()["id"]
    assert (await client.get("/documents")).status_code == 200
    assert (await client.delete(f"/documents/{document}")).status_code in (200, 202, 204)
    assert (await client.get("/documents/none")).status_code in (404, 422)


async def judgements(client: httpx.AsyncClient, stub: StubOllama) -> None:
    answered = await ask(client, fresh())
    for verdict in ("good", "bad"):
        vote = {"request_id": answered["request_id"], "verdict": verdict}
        assert (await client.post("/feedback", json=vote)).status_code == 202
    assert (await client.post("/feedback", json={"request_id": "none", "verdict": "bad"})).status_code == 404
    assert (await client.post("/api/semantic-cache/explain", json={"question": fresh()})).status_code == 200


async def reports(client: httpx.AsyncClient, stub: StubOllama) -> None:
    for path in REPORTS:
        response = await client.get(path)
        assert response.status_code == 200, (path, response.text)
    async with client.stream("GET", "/dashboard/events") as response:
        async for _ in response.aiter_bytes():
            break


async def administration(client: httpx.AsyncClient, stub: StubOllama) -> None:
    created = await client.post("/api/keys", json={"tenant": "acme"})
    assert created.status_code == 201, created.text
    key = created.json()["id"]
    assert (await client.post(f"/api/keys/{key}/rotate")).status_code == 200
    assert (await client.delete(f"/api/keys/{key}")).status_code in (200, 204)
    assert (await client.delete("/api/semantic-cache", params={"tenant": "acme"})).status_code == 200
    assert (await client.delete("/api/tenants/acme")).status_code == 200


async def refused_callers(client: httpx.AsyncClient, stub: StubOllama) -> None:
    question, keyed = {"question": fresh()}, {"Authorization": "Bearer a-key-of-acme"}
    statuses = [(await client.post("/query", json=question, headers=keyed)).status_code for _ in range(3)]
    assert statuses[-1] == 429
    assert (await client.post("/query", json=question, headers={"Authorization": "Bearer wrong"})).status_code == 401


async def questions_while_embeddings_fail(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("status", path="/api/embed")
    await ask(client, fresh())
    stub.behaviour()


async def readers_that_leave(client: httpx.AsyncClient, stub: StubOllama) -> None:
    async with client.stream("POST", "/query", json={"question": fresh(), "stream": True}) as response:
        async for _ in response.aiter_bytes():
            break


async def askers_that_leave_before_the_first_word(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(delay=5.0, path="/api/chat")
    asked = stub.stats["requests"].get("/api/chat", 0)
    leaving = asyncio.create_task(client.post("/query", json={"question": fresh()}))
    await eventually(lambda: stub.stats["requests"].get("/api/chat", 0) > asked)
    leaving.cancel()
    await asyncio.wait([leaving])
    await eventually(has_landed)
    stub.behaviour()


async def several_that_ask_the_same(client: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(delay=0.1, path="/api/chat")
    question = fresh()
    await asyncio.gather(*(ask(client, question) for _ in range(3)))
    stub.behaviour()


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SETTINGS: dict[str, dict[str, Any]] = {
    "expired_answers_while_the_breaker_is_open": {"cache": {"ttl": 0.05}},
    "an_ollama_that_hangs": {
        "ollama": {"ollama_first_token_timeout": 0.1, "ollama_cold_first_token_timeout": 0.3},
        "embedder": {"embed_timeout": 0.1},
    },
    "changes_of_models": {"ollama": {"ollama_admin_passthrough": True}},
    "refused_callers": {
        "access": {"api_keys": "acme=a-key-of-acme", "rate_limit_requests_per_minute": 1, "wrong_key_delay": 0}
    },
    "refreshes_that_fail": {"cache": {"ttl": 0.05, "stale_while_revalidate": 600.0}},
}
REPORTS = (
    *("/health", "/health/live", "/health/ready", "/metrics", "/api/workers", "/api/history", "/api/experiments"),
    *("/api/circuit-breaker/metrics", "/api/circuit-breaker/history", "/api/circuit-breaker/recovery"),
    *("/api/bulkhead/metrics", "/api/backends", "/api/semantic-cache/metrics", "/api/semantic-cache/quality"),
    *("/api/connection-pool/metrics", "/api/audit", "/api/keys", "/dashboard", "/openapi.json"),
)
KINDS = (
    misses,
    repeats,
    streams,
    chats,
    embeddings,
    uploads,
    refused_bodies,
    upstream_faults,
    answers_cut_off,
    refused_connections,
    answers_that_are_late,
    an_ollama_that_hangs,
    calls_to_an_open_breaker,
    every_api_while_the_breaker_is_open,
    expired_answers_while_the_breaker_is_open,
    refreshes_that_fail,
    warm_ups,
    forwarded_requests,
    documents_in_and_out,
    judgements,
    reports,
    administration,
    refused_callers,
    lists_of_models,
    changes_of_models,
    questions_while_embeddings_fail,
    readers_that_leave,
    askers_that_leave_before_the_first_word,
    several_that_ask_the_same,
)


def named(one: object) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def is_ours(one: object) -> bool:
    """Returns whether an object is the service's. The test's own client leaves rings, too."""
    return named(one).startswith(("api.", "redis.")) or isinstance(one, BaseException)


@pytest.mark.parametrize("requests", KINDS, ids=lambda kind: kind.__name__)
async def test_requests_leave_nothing_to_the_garbage_collector(
    serve: Service, stub: StubOllama, requests: Callable[[httpx.AsyncClient, StubOllama], Awaitable[None]]
) -> None:
    client = await serve(breaker={"failure_threshold": 1.0}, **SETTINGS.get(requests.__name__, {}))
    for _ in range(3):
        await requests(client, stub)
    with garbage() as found:
        for _ in range(TIMES):
            await requests(client, stub)
        await eventually(has_landed)
    assert Counter(map(named, filter(is_ours, found))) == {}


async def test_a_redis_that_cuts_connections_and_is_late_leaves_nothing_either(
    redis: Redis, redis_url: str, stub: StubOllama
) -> None:
    async with slow_proxy(redis_url) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        settings = make_settings(url, stub.base_url, redis={"timeout": 0.1}, bulkhead={"max_concurrent": 100})
        async with running_service(settings) as client:

            async def has_redis() -> bool:
                return bool((await client.get("/health")).json()["database"])

            async def cut_and_late() -> None:
                for kind in ("normal", "pubsub"):
                    await redis.client_kill_filter(_type=kind, skipme=True)
                await ask(client, fresh())
                await wait_until_async(has_redis)
                proxy.delay = 0.5
                await ask(client, fresh())
                proxy.delay = 0.0
                await wait_until_async(has_redis)

            for _ in range(2):
                await cut_and_late()
            failed = await failures(client)
            with garbage() as found:
                for _ in range(TIMES):
                    await cut_and_late()
                await eventually(has_landed)
            assert await failures(client) >= failed + TIMES
    ours = Counter(map(named, filter(is_ours, found)))
    del ours["redis._parsers.hiredis._AsyncHiredisParser"]  # redis-py's own, one for each connection that was cut
    assert ours == {}


async def failures(client: httpx.AsyncClient) -> float:
    """Returns how many operations of Redis have failed."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    failed = [one.value for family in families if family.name == "ragherd_redis_errors" for one in family.samples]
    return math.fsum(failed)
