"""Backends that an admin drains and resumes, and what is shown about each backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until_async

PATH = "/api/backends"
FIELDS = {
    "name", "url", "tier", "weight", "drained", "drained_at", "reachable", "models", "resident", "breakers", "in_use",
    "limit", "waiting", "max_queue", "tokens_per_second", "remembered_prompts",
}  # fmt: skip


@pytest.fixture
async def other() -> AsyncIterator[StubOllama]:
    async with running_stub() as stub:
        yield stub


@pytest.fixture
def both(stub: StubOllama, other: StubOllama) -> dict[str, Any]:
    """Settings for two backends."""
    return {"ollama_base_url": f"{stub.base_url},{other.base_url}", "ollama_probe_interval": 0.2}


def chats(stub: StubOllama) -> int:
    count: int = stub.stats["requests"].get("/api/chat", 0)
    return count


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    """The backends by name."""
    response = await client.get(PATH)
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["backends"]}


async def drained(client: httpx.AsyncClient) -> list[str]:
    return [name for name, one in (await shown(client)).items() if one["drained"]]


async def until_drained(client: httpx.AsyncClient, *names: str) -> None:
    async def as_expected() -> bool:
        return await drained(client) == list(names)

    await wait_until_async(as_expected)


async def post(client: httpx.AsyncClient, name: str, action: str = "drain", status: int = 200, **params: Any) -> Any:
    response = await client.post(f"{PATH}/{name}/{action}", params=params)
    assert response.status_code == status, response.text
    return response.json()


async def asked(client: httpx.AsyncClient, numbers: range) -> None:
    await asyncio.gather(*(ask(client, f"What is number {number}?") for number in numbers))


async def test_each_backend_is_shown_with_its_place_health_models_and_load(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    stub.behaviour(answer="one two three")
    url = other.base_url.replace("http://", "http://me:secret@")
    client = await serve(ollama={"ollama_base_url": f"{stub.base_url},{url}#tier=2&weight=3"})
    await ask(client, "Why?")
    found = await shown(client)
    assert [set(one) for one in found.values()] == [FIELDS, FIELDS]
    first, second = found["ollama"], found["ollama-2"]
    assert (first["url"], first["tier"], first["weight"]) == (stub.base_url, 1, 1)
    assert (second["url"], second["tier"], second["weight"]) == (other.base_url, 2, 3)
    assert first["breakers"] == {"ollama": "CLOSED", "ollama-embed": "CLOSED"}
    assert (first["drained"], first["drained_at"], first["in_use"], first["waiting"]) == (False, None, 0, 0)
    assert (first["limit"], first["max_queue"]) == (4, 64)
    assert first["tokens_per_second"] > 0
    await wait_until_async(lambda: probed(client))
    first = (await shown(client))["ollama"]
    assert "llama3.2:latest" in first["models"]
    assert "llama3.2:latest" in first["resident"]


async def probed(client: httpx.AsyncClient) -> bool:
    return all(one["reachable"] for one in (await shown(client)).values())


async def test_every_worker_stops_calling_a_drained_backend_within_a_second(
    serve: Service, both: dict[str, Any], stub: StubOllama, other: StubOllama
) -> None:
    workers = [await serve(ollama=both) for _ in range(2)]
    changed = await post(workers[0], "ollama-2")
    assert [one["drained"] for one in changed["backends"]] == [False, True]
    async with asyncio.timeout(1):
        await until_drained(workers[1], "ollama-2")
    embeddings = other.stats["requests"].get("/api/embed", 0)
    await asyncio.gather(*(asked(client, range(at, at + 5)) for client, at in zip(workers, (0, 5), strict=True)))
    assert (chats(stub), chats(other)) == (10, 0)
    assert other.stats["requests"].get("/api/embed", 0) == embeddings
    health = (await workers[1].get("/health")).json()
    assert (health["status"], health["drained"]) == ("healthy", ["ollama-2"])
    assert (await shown(workers[1]))["ollama-2"]["drained_at"].endswith("Z")

    await post(workers[1], "ollama-2", "resume")
    async with asyncio.timeout(1):
        await until_drained(workers[0])
    await asked(workers[0], range(10, 20))
    assert chats(other) >= 3


async def test_calls_in_progress_end_and_those_in_the_queue_move(
    serve: Service, both: dict[str, Any], stub: StubOllama, other: StubOllama
) -> None:
    client = await serve(ollama=both, bulkhead={"max_concurrent": 1})
    stub.behaviour(delay=1.0, path="/api/chat")
    other.behaviour(delay=1.0, path="/api/chat")
    asking = asyncio.create_task(asked(client, range(4)))
    await wait_until_async(lambda: both_wait(client))
    await post(client, "ollama-2")
    await asking
    assert (chats(stub), chats(other)) == (3, 1)


async def both_wait(client: httpx.AsyncClient) -> bool:
    found = await shown(client)
    return all((one["in_use"], one["waiting"]) == (1, 1) for one in found.values())


async def test_the_last_backend_is_drained_only_by_force(serve: Service, both: dict[str, Any], redis: Redis) -> None:
    client = await serve(ollama=both, cache={"ttl": 0.05})
    answered = await ask(client, "What was asked before?")
    entry = answered["cache"]["entry"]
    await wait_until_async(lambda: expired(redis, entry))
    await post(client, "ollama")
    refused = await post(client, "ollama-2", status=409)
    assert refused["type"] == "urn:ragherd:problem:last-backend"
    assert await drained(client) == ["ollama"]
    await post(client, "ollama-2", force=True)
    response = await client.post("/query", json={"question": "Is anybody there?"})
    assert (response.status_code, response.json()["type"]) == (503, "urn:ragherd:problem:backends-drained")
    assert response.headers["Retry-After"] == "30"
    stale = await ask(client, "What was asked before?")
    assert (stale["cache"]["status"], stale["answer"]) == ("stale", answered["answer"])
    assert (await client.get("/health")).json()["status"] == "degraded"
    assert (await client.get("/api/tags")).status_code == 200
    await post(client, "ollama-2", "resume")
    await ask(client, "Is anybody there?")


async def expired(redis: Redis, entry: str) -> bool:
    seconds, _ = await redis.time()
    return seconds * 1000 > int(await redis.hget(entry, "expires_ms") or 0)


async def test_a_model_that_only_a_drained_backend_has_is_not_called_unknown(
    serve: Service, both: dict[str, Any], stub: StubOllama, other: StubOllama
) -> None:
    stub.behaviour(models=["nomic-embed-text:latest"])
    client = await serve(ollama=both)
    await wait_until_async(lambda: probed(client))
    await post(client, "ollama-2")
    response = await client.post("/query", json={"question": "Who?"})
    assert (response.status_code, response.json()["breaker"]) == (503, "ollama-2")
    assert (await client.post("/query", json={"question": "Who?", "model": "nowhere"})).status_code == 404


async def test_two_admins_cannot_drain_the_last_two_at_once(serve: Service, both: dict[str, Any]) -> None:
    workers = [await serve(ollama=both) for _ in range(2)]
    for _ in range(5):
        drains = [workers[0].post(f"{PATH}/ollama/drain"), workers[1].post(f"{PATH}/ollama-2/drain")]
        statuses = [response.status_code for response in await asyncio.gather(*drains)]
        assert 409 in statuses
        assert len(await drained(workers[0])) == statuses.count(200)
        for name in ("ollama", "ollama-2"):
            await post(workers[0], name, "resume")
        await until_drained(workers[1])


async def test_a_drain_is_in_the_history_and_is_neither_an_outage_nor_a_change_of_state(
    serve: Service, both: dict[str, Any]
) -> None:
    client = await serve(ollama=both)
    for action in ("drain", "drain", "resume"):
        await post(client, "ollama-2", action)
    history = (await client.get("/api/circuit-breaker/history", params={"breaker": "ollama-2"})).json()["transitions"]
    worker = (await client.get("/health")).json()["worker"]
    assert [(one["reason"], one["from"], one["to"], one["by"]) for one in history] == [
        ("resumed", "CLOSED", "CLOSED", worker),
        ("drained", "CLOSED", "CLOSED", worker),
    ]
    recovery = (await client.get("/api/circuit-breaker/recovery", params={"breaker": "ollama-2"})).json()
    assert recovery["outages"] == []


async def test_a_drain_survives_restarts_a_reset_and_a_lost_redis(
    redis: Redis, redis_url: str, redis_server: EmbeddedRedis, both: dict[str, Any], stub: StubOllama
) -> None:
    settings = make_settings(redis_url, stub.base_url, ollama=both)
    async with running_service(settings) as client:
        await post(client, "ollama-2")
        assert await redis.pttl("rag:cb:{ollama-2}") == -1
    async with running_service(settings) as client:
        assert await drained(client) == ["ollama-2"]
        assert (await client.post("/api/circuit-breaker/reset")).status_code == 200
        assert await drained(client) == ["ollama-2"]
        redis_server.kill()
        await wait_until_async(lambda: without_redis(client))
        assert await drained(client) == ["ollama-2"]
        refused = await client.post(f"{PATH}/ollama-2/resume")
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        before = chats(stub)
        await asked(client, range(4))
        assert chats(stub) == before + 4


async def without_redis(client: httpx.AsyncClient) -> bool:
    return not (await client.get("/health")).json()["database"]


async def test_a_drain_survives_flushall_and_a_resume_does_not_come_undone(
    serve: Service, both: dict[str, Any], redis: Redis
) -> None:
    workers = [await serve(ollama=both), await serve(ollama=both)]
    await post(workers[0], "ollama-2")
    await until_drained(workers[1], "ollama-2")
    await redis.flushall()

    async def is_restored() -> bool:
        return bool(await redis.hget("rag:cb:{ollama-2}", "drained"))

    await wait_until_async(is_restored)
    for worker in (*workers, await serve(ollama=both)):
        await until_drained(worker, "ollama-2")
    await post(workers[1], "ollama-2", "resume")
    for worker in workers:
        await until_drained(worker)
    await redis.flushall()
    await asyncio.gather(*(asked(worker, range(2)) for worker in workers))
    assert [await drained(worker) for worker in workers] == [[], []]


async def test_a_resume_by_a_worker_of_an_older_release_does_not_come_undone(
    serve: Service, both: dict[str, Any], redis: Redis
) -> None:
    client = await serve(ollama=both)
    await post(client, "ollama-2")
    await until_drained(client, "ollama-2")
    entry: dict[Any, Any] = {"from": "CLOSED", "to": "CLOSED", "reason": "resumed", "by": "old", "epoch": 1}
    async with redis.pipeline(transaction=True) as resume:
        resume.hdel("rag:cb:{ollama-2}", "drained", "drained_ms")
        resume.xadd("rag:cb:{ollama-2}:log", entry | {"wait_ms": 0, "at_ms": 0})
        await resume.execute()
    await until_drained(client)


async def test_a_name_that_has_another_url_now_is_not_drained(
    redis: Redis, redis_url: str, stub: StubOllama, other: StubOllama
) -> None:
    one, two = stub.base_url, other.base_url
    async with running_service(make_settings(redis_url, one, ollama={"ollama_base_url": f"{one},{two}"})) as client:
        await post(client, "ollama")
    async with running_service(make_settings(redis_url, one, ollama={"ollama_base_url": f"{two},{one}"})) as client:
        assert await drained(client) == []


async def test_a_backend_that_is_resumed_loads_its_models(
    serve: Service, both: dict[str, Any], other: StubOllama
) -> None:
    client = await serve(ollama={**both, "ollama_warm_up": True})
    await wait_until_async(lambda: loads(other, 1))
    await post(client, "ollama-2")
    await post(client, "ollama-2", "resume")
    await wait_until_async(lambda: loads(other, 1))


async def loads(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["requests"].get("/api/generate", 0) >= count)


async def test_only_admins_drain_and_unknown_names_are_404(serve: Service) -> None:
    client = await serve(access={"admin_keys": "root-key", "api_keys": "acme=acme-key"})
    for action in ("drain", "resume"):
        assert (await client.post(f"{PATH}/ollama/{action}")).status_code == 401
        user = {"Authorization": "Bearer acme-key"}
        assert (await client.post(f"{PATH}/ollama/{action}", headers=user)).status_code == 403
        admin = {"Authorization": "Bearer root-key"}
        unknown = await client.post(f"{PATH}/ollama-9/{action}", headers=admin)
        assert (unknown.status_code, unknown.json()["detail"]) == (404, "No backend 'ollama-9'. Backends: ollama.")
    assert (await client.get(PATH)).status_code == 200


# -- Tiers -------------------------------------------------------------------------------------------------------------


async def test_the_second_tier_is_used_while_the_first_is_full_or_down(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    tiers = {"ollama_base_url": f"{other.base_url}#tier=2,{stub.base_url}#tier=1", "ollama_probe_interval": 30.0}
    client = await serve(ollama=tiers, bulkhead={"max_concurrent": 2})
    for number in range(4):
        await ask(client, f"What comes after {number}?")
    assert (chats(stub), chats(other)) == (4, 0)
    stub.behaviour(delay=1.0, path="/api/chat")
    await asked(client, range(3))
    assert (chats(stub), chats(other)) == (6, 1)
    await stub.refuse()
    await asked(client, range(3, 6))
    assert chats(other) == 4


async def test_an_unknown_model_is_404_although_a_backend_is_down(
    serve: Service, both: dict[str, Any], stub: StubOllama, other: StubOllama
) -> None:
    for backend in (stub, other):
        backend.behaviour(models=["llama3.2:latest", "nomic-embed-text:latest"])
    client = await serve(ollama=both)
    await wait_until_async(lambda: probed(client))
    await other.refuse()
    for path, body in (
        ("/query", {"question": "Who?", "model": "nowhere"}),
        ("/api/embed", {"model": "nowhere", "input": "Who?"}),
    ):
        response = await client.post(path, json=body)
        assert response.status_code == 404, response.text
        assert "ollama-2" in response.text
    assert (await client.post("/query", json={"question": "Who?", "model": "nowhere"})).json()["unreachable"] == [
        "ollama-2"
    ]


async def test_the_breaker_of_a_higher_tier_closes_while_the_first_tier_takes_all_calls(
    serve: Service, stub: StubOllama, other: StubOllama
) -> None:
    tiers = {"ollama_base_url": f"{stub.base_url},{other.base_url}#tier=2", "ollama_probe_interval": 30.0}
    client = await serve(ollama=tiers, breaker={"failure_threshold": 1, "timeout": 0.3})
    await post(client, "ollama")
    other.behaviour("status", status=500)
    assert (await client.post("/query", json={"question": "Does it fail?"})).status_code == 502
    await post(client, "ollama", "resume")
    other.behaviour()
    assert (await client.get("/health")).json()["status"] == "degraded"
    numbers = iter(range(1000))

    async def is_closed() -> bool:
        await ask(client, f"What comes after {next(numbers)}?")
        states = [state for one in (await shown(client)).values() for state in one["breakers"].values()]
        return set(states) == {"CLOSED"}

    await wait_until_async(is_closed)
    before = chats(other)
    await asked(client, range(4))
    assert chats(other) == before


async def test_the_open_breaker_of_a_drained_backend_does_not_degrade_the_service(
    serve: Service, both: dict[str, Any]
) -> None:
    client = await serve(ollama=both)
    assert (await client.post("/api/circuit-breaker/force-open?breaker=ollama-2")).status_code == 200
    assert (await client.get("/health")).json()["status"] == "degraded"
    await post(client, "ollama-2")
    assert (await client.get("/health")).json()["status"] == "healthy"


async def test_hits_are_checked_while_a_drained_backend_has_an_open_breaker(
    serve: Service, stub: StubOllama, other: StubOllama, both: dict[str, Any]
) -> None:
    client = await serve(ollama=both, cache={"shadow_rate": 1.0})
    assert (await client.post("/api/circuit-breaker/force-open?breaker=ollama-2")).status_code == 200
    await post(client, "ollama-2")
    for _ in range(2):
        await ask(client, "What is a drain?")

    async def compared() -> bool:
        return chats(stub) == 2  # the answer, and the shadow call of the hit

    await wait_until_async(compared)
    assert chats(other) == 0
