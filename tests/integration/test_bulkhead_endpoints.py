"""The bulkhead over HTTP: if it is full, 503 with Retry-After or an expired answer; figures of two workers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from api.embedded.redis_server import EmbeddedRedis
from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

METRICS = "/api/bulkhead/metrics"
ONE_AT_A_TIME: dict[str, Any] = {"max_concurrent": 1, "max_queue": 1}


async def figures(client: httpx.AsyncClient) -> Any:
    return (await client.get(METRICS)).json()


async def until(client: httpx.AsyncClient, **expected: Any) -> None:
    """Waits until the fleet's figures are as expected."""

    async def reached() -> bool:
        found = await figures(client)
        return {name: found[name] for name in expected} == expected

    await wait_until_async(reached)


def asking(client: httpx.AsyncClient, question: str, **more: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/query", json={"question": question, **more}))


async def release(stub: StubOllama, *calls: asyncio.Task[httpx.Response]) -> None:
    """Lets hanging calls finish and waits until all are answered, including their retries and the waiting ones."""
    stub.behaviour("ok")
    stub.break_connections()
    assert {(await call).status_code for call in calls} == {200}


async def test_at_rest_nothing_is_in_use(serve: Service) -> None:
    found = await figures(await serve())
    assert set(found["bulkheads"]) == {"ollama", "ollama-embed"}
    assert (found["limit"], found["bulkheads"]["ollama-embed"]["limit"]) == (4, 8)
    assert (found["in_use"], found["waiting"], found["waiting_by_tenant"], found["store"]) == (0, 0, {}, "shared")
    assert found["rejected"] == {"queue_full": 0, "deadline": 0, "displaced": 0}


async def test_a_full_bulkhead_is_503_with_retry_after_and_no_fault_of_the_breaker_s(
    serve: Service, stub: StubOllama
) -> None:
    one, other = await serve(bulkhead=ONE_AT_A_TIME), await serve(bulkhead=ONE_AT_A_TIME)
    await ask(one, "How long does it take?")
    stub.behaviour(mode="hang", path="/api/chat")
    calls = [asking(one, "First?", tenant="acme")]
    await until(other, in_use=1)
    calls.append(asking(other, "Second?", tenant="acme"))
    await until(one, waiting=1)
    assert (await figures(one))["waiting_by_tenant"] == {"acme": 1}
    rejected = await other.post("/query", json={"question": "Third?", "tenant": "acme"})
    assert rejected.status_code == 503
    assert int(rejected.headers["Retry-After"]) >= 1
    assert rejected.headers["Content-Type"] == "application/problem+json"
    problem = rejected.json()
    assert (problem["type"], problem["reason"]) == ("urn:ragherd:problem:bulkhead-full", "queue_full")
    assert (await figures(one))["rejected"]["queue_full"] == 1
    breaker = (await one.get("/api/circuit-breaker/metrics")).json()
    assert (breaker["failure_count"], breaker["rejected_calls"]) == (0, 0)
    assert stub.stats["requests"]["/api/chat"] == 2
    await release(stub, *calls)


async def test_the_wait_is_bounded_and_the_service_time_makes_retry_after(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1, "max_wait": 0.2})
    stub.behaviour(delay=1.1, path="/api/chat")
    await ask(client, "How long does it take?")
    stub.behaviour(mode="hang", path="/api/chat")
    holding = asking(client, "First?")
    await until(client, in_use=1)
    late = await client.post("/query", json={"question": "Second?"})
    assert (late.status_code, late.json()["reason"], late.headers["Retry-After"]) == (503, "deadline", "2")
    await until(client, waiting=0, rejected={"queue_full": 0, "deadline": 1, "displaced": 0})
    await release(stub, holding)


async def test_an_expired_answer_is_served_while_the_bulkhead_is_full(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1, "max_queue": 0}, cache={"ttl": 0.05})
    await ask(client, "What is kept?")
    stub.behaviour(mode="hang", path="/api/chat")
    holding = asking(client, "First?")
    await until(client, in_use=1)

    async def stale() -> bool:
        answered = await client.post("/query", json={"question": "What is kept?"})
        return answered.status_code == 200 and answered.json()["cache"]["status"] == "stale"

    await wait_until_async(stale)
    await release(stub, holding)


async def test_a_client_that_leaves_frees_its_place_and_its_permit(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1})
    stub.behaviour(mode="hang_between", path="/api/chat")
    holding = asking(client, "First?", stream=True)
    await until(client, in_use=1)
    waiting = asking(client, "Second?", stream=True)
    await until(client, waiting=1)
    waiting.cancel()
    await until(client, waiting=0, in_use=1)
    holding.cancel()
    await until(client, waiting=0, in_use=0)


async def test_a_full_line_at_one_backend_goes_on_to_the_next(serve: Service, stub: StubOllama) -> None:
    async with running_stub() as second:
        both = {"ollama_base_url": f"{stub.base_url},{second.base_url}"}
        client = await serve(ollama=both, bulkhead={"max_concurrent": 1, "max_queue": 0})
        for backend in (stub, second):
            backend.behaviour(mode="hang", path="/api/chat")
        calls = [asking(client, f"What of number {number}?") for number in range(2)]

        async def both_busy() -> bool:
            found = (await figures(client))["bulkheads"]
            return [found[name]["in_use"] for name in ("ollama", "ollama-2")] == [1, 1]

        await wait_until_async(both_busy)
        rejected = await client.post("/query", json={"question": "One more?"})
        assert (rejected.status_code, rejected.json()["reason"]) == (503, "queue_full")
        for backend in (stub, second):
            backend.behaviour("ok")
        for backend in (stub, second):
            backend.break_connections()
        assert {(await call).status_code for call in calls} == {200}


async def test_an_open_breaker_rejects_before_the_line(serve: Service, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1})
    stub.behaviour(mode="hang", path="/api/chat")
    holding = asking(client, "First?")
    await until(client, in_use=1)
    await client.post("/api/circuit-breaker/force-open")
    rejected = await asyncio.wait_for(client.post("/query", json={"question": "Second?"}), 5)
    assert rejected.json()["type"] == "urn:ragherd:problem:circuit-breaker-open"
    assert (await client.get("/api/circuit-breaker/metrics")).json()["rejected_calls"] == 1
    await release(stub, holding)


async def test_no_more_generations_at_once_than_permits_over_two_workers(serve: Service, stub: StubOllama) -> None:
    unembedded = {"follow_ups": False}  # the stub counts embeddings in flight, too
    fleet = [
        await serve(bulkhead={"max_concurrent": 2}, embedder={"embedder": "ollama"}, cache=unembedded) for _ in range(2)
    ]
    stub.behaviour(delay=0.02, path="/api/chat")
    answers = await asyncio.gather(
        *(
            ask(fleet[number % 2], f"What of {number}?", history=[{"role": "user", "content": "Hm."}])
            for number in range(16)
        )
    )
    assert len(answers) == 16
    assert stub.stats["max_in_flight"] == 2


async def test_without_redis_the_bulkhead_is_the_worker_s_own(
    serve: Service, redis_server: EmbeddedRedis, stub: StubOllama
) -> None:
    client = await serve(bulkhead=ONE_AT_A_TIME)
    await ask(client, "First?")
    redis_server.kill()
    try:
        stub.behaviour(mode="hang", path="/api/chat")
        calls = [asking(client, "Second?")]
        await until(client, in_use=1, store="local", limit=1)
        calls.append(asking(client, "Third?"))
        await until(client, waiting=1)
        assert (await client.post("/query", json={"question": "Fourth?"})).status_code == 503
        await release(stub, *calls)
    finally:
        redis_server.start()
    await until(client, store="shared", in_use=0, waiting=0)
