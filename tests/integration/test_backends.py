"""Two backends behind one service: clients see no fault of one while the other is healthy."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

CHAT = "/api/chat"
NEVER = {"ollama_probe_interval": 30.0}
"""One look at the start, and no other in the time of a test."""
QUICK = {"ollama_probe_interval": 0.1, "ollama_connect_timeout": 0.2}


@pytest.fixture
async def other() -> AsyncIterator[StubOllama]:
    async with running_stub() as stub:
        yield stub


@pytest.fixture
def both(stub: StubOllama, other: StubOllama) -> str:
    return f"{stub.base_url},{other.base_url}"


def chats(stub: StubOllama) -> int:
    count: int = stub.stats["requests"].get(CHAT, 0)
    return count


_numbers = itertools.count()


async def fresh(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    """A question that was never asked."""
    return await client.post("/query", json={"question": f"Question {next(_numbers)}?", **more})


async def failed(client: httpx.AsyncClient, count: int) -> Counter[int]:
    """The statuses of so many questions asked together, 200 aside."""
    statuses = Counter(answer.status_code for answer in await asyncio.gather(*(fresh(client) for _ in range(count))))
    del statuses[200]
    return statuses


async def breakers(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/circuit-breaker/metrics")).json()["breakers"]
    return found


async def backends(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/connection-pool/metrics")).json()["backends"]
    return found


async def probed(client: httpx.AsyncClient, expected: Callable[[dict[str, Any]], object]) -> None:
    """Waits until the worker knows of its backends what is expected."""

    async def known() -> object:
        return expected(await backends(client))

    await wait_until_async(known)


async def test_they_share_the_work(serve: Service, both: str, stub: StubOllama, other: StubOllama) -> None:
    client = await serve(ollama={"ollama_base_url": both})
    assert await failed(client, 20) == {}
    assert chats(stub) + chats(other) == 20
    assert min(chats(stub), chats(other)) >= 6
    assert list(await breakers(client)) == ["ollama", "ollama-embed", "ollama-2", "ollama-2-embed"]


@pytest.mark.parametrize("way", ["refuse", "status"])
async def test_under_load_one_fails_and_returns_and_no_request_fails(
    serve: Service, both: str, stub: StubOllama, other: StubOllama, way: str
) -> None:
    breaker = {"timeout": 0.3, "failure_threshold": 3}
    client = await serve(ollama={"ollama_base_url": both, **QUICK}, breaker=breaker)
    stub.behaviour(delay=0.01)
    other.behaviour(delay=0.01)
    statuses: Counter[int] = Counter()
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            statuses[(await fresh(client)).status_code] += 1

    load = [asyncio.create_task(keep_asking()) for _ in range(8)]
    await wait_until_async(lambda: _true(chats(stub) > 20))
    if way == "refuse":
        await stub.refuse()
    else:
        stub.behaviour("status", status=500)
    after = statuses[200]
    await wait_until_async(lambda: _true(statuses[200] > after + 50))
    stub.behaviour(delay=0.01)
    await stub.listen()
    before = chats(stub)
    await wait_until_async(lambda: _true(chats(stub) > before + 20))
    stop.set()
    await asyncio.gather(*load)
    assert set(statuses) == {200}, statuses


async def test_a_backend_without_the_model_is_skipped(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    stub.behaviour(models=["nomic-embed-text:latest"])
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    await probed(client, lambda found: found["ollama"]["models"] == ["nomic-embed-text:latest"])
    assert await failed(client, 6) == {}
    assert (chats(stub), chats(other)) == (0, 6)


async def test_a_model_that_went_since_the_probe_is_found_on_the_other(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    await probed(client, lambda found: found["ollama"]["reachable"])
    stub.behaviour(models=[])
    assert await failed(client, 6) == {}
    assert (chats(other), chats(stub) > 0) == (6, True)
    assert (await breakers(client))["ollama"]["failure_count"] == 0
    other.behaviour(models=[])
    assert (await fresh(client)).status_code == 404


async def test_a_model_in_memory_comes_first(serve: Service, both: str, stub: StubOllama, other: StubOllama) -> None:
    stub.behaviour(resident="no")
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    await probed(client, lambda found: found["ollama"]["reachable"])
    assert await failed(client, 6) == {}
    assert (chats(stub), chats(other)) == (0, 6)


async def test_an_open_breaker_on_one_leaves_the_other_all_calls(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER}, breaker={"failure_threshold": 3})
    stub.behaviour("status", status=500, path=CHAT)
    assert await failed(client, 12) == {}
    found = await breakers(client)
    assert {name: breaker["state"] for name, breaker in found.items()} == {
        "ollama": "OPEN",
        "ollama-embed": "CLOSED",
        "ollama-2": "CLOSED",
        "ollama-2-embed": "CLOSED",
    }
    tried, rejected = chats(stub), found["ollama"]["rejected_calls"]
    assert await failed(client, 12) == {}
    assert chats(stub) == tried
    assert (await breakers(client))["ollama"]["rejected_calls"] == rejected
    health = (await client.get("/health")).json()
    assert (health["status"], health["ollama"], health["circuit_breaker"]) == ("degraded", True, "OPEN")


async def test_an_operator_takes_one_out_of_service(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    assert (await client.post("/api/circuit-breaker/force-open?breaker=ollama-2")).status_code == 200
    assert await failed(client, 6) == {}
    assert (chats(stub), chats(other)) == (6, 0)
    assert (await client.post("/api/circuit-breaker/reset?breaker=ollama-3")).status_code == 404


async def test_all_down_is_502_and_once_all_are_open_503_with_the_shortest_wait(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER}, breaker={"failure_threshold": 1, "timeout": 40})
    await probed(client, lambda found: found["ollama"]["reachable"])
    await stub.refuse()
    assert await failed(client, 2) == {}
    await wait_until_async(lambda: _opened(client, "ollama"))
    await other.refuse()
    answer = await fresh(client)
    assert (answer.status_code, answer.json()["fault"]) == (502, "connect_failed")
    answer = await fresh(client)
    assert (answer.status_code, answer.json()["breaker"]) == (503, "ollama")
    assert int(answer.headers["Retry-After"]) <= 40
    assert (await breakers(client))["ollama-2"]["state"] == "OPEN"


async def test_an_answer_that_breaks_off_begins_anew_on_the_other_where_nobody_reads_along(
    serve: Service, both: str, stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    stub.behaviour("cut", path=CHAT)
    answers = [(await fresh(client)).json()["answer"] for _ in range(4)]
    assert [answer.count("echo:") for answer in answers] == [1] * 4
    assert chats(stub) > 0
    assert (await breakers(client))["ollama"]["failure_count"] == chats(stub)


async def test_embeddings_go_on_where_they_can(serve: Service, both: str, stub: StubOllama, other: StubOllama) -> None:
    client = await serve(ollama={"ollama_base_url": both, **NEVER})
    await ask(client, "How do I reset my password?")
    stub.behaviour("status", status=500, path="/api/embed")
    for question in ("My password, how do I reset?", "How do I, my password, reset?"):
        assert (await ask(client, question))["cache"]["kind"] == "semantic"


async def test_each_backend_says_what_it_did(
    serve: Service, both: str, stub: StubOllama, other: StubOllama, redis: Redis
) -> None:
    client = await serve(ollama={"ollama_base_url": both, "ollama_num_ctx": 4096, "ollama_keep_alive": "600", **NEVER})
    stub.behaviour(load_duration=2.0, answer="one two three")
    assert await failed(client, 4) == {}
    report = (await client.get("/api/connection-pool/metrics")).json()
    first = report["backends"]["ollama"]
    assert first["ollama"]["generations"] == 2
    assert first["ollama"]["load_seconds"] == 4.0
    assert first["ollama"]["completion_tokens"] == 6
    assert first["ollama"]["tokens_per_second"] == 20.0
    assert report["ollama"]["generations"] == 4
    assert report["requests"] == sum(pool["requests"] for pool in report["backends"].values())
    chat = report["endpoints"][CHAT]
    assert chat["time_to_first_byte_ms"] > 0
    assert 0 < chat["transfer_ms"] <= chat["latency_ms"]["p99"]
    await wait_until_async(lambda: _in_metrics(client, 'ragherd_ollama_generations_total{backend="ollama"} 2.0'))
    await wait_until_async(lambda: _in_metrics(client, 'ragherd_backend_up{backend="ollama-2"} 1.0'))
    body = other.last_bodies[CHAT]
    assert (body["options"], body["keep_alive"]) == ({"num_ctx": 4096}, 600)
    assert other.last_bodies["/api/embed"]["keep_alive"] == 600


async def _in_metrics(client: httpx.AsyncClient, line: str) -> bool:
    return line in (await client.get("/metrics")).text


async def _opened(client: httpx.AsyncClient, name: str) -> bool:
    state: str = (await breakers(client))[name]["state"]
    return state == "OPEN"


async def _true(value: object) -> object:
    return value


async def _now(value: None) -> None:
    return value
