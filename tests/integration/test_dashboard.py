"""The live page's files, and the figures that it gets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.endpoints.dashboard import ASSETS, FOLDER
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

PARTS = {"health", "breaker", "bulkhead", "backends", "pool", "workers", "cache", "recent", "price_per_million_tokens"}
ADMINS = {"access": {"admin_keys": "root-key", "api_keys": "acme=acme-key"}}


@asynccontextmanager
async def opened(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The figures that a page gets, as one object per event."""
    async with client.stream("GET", "/dashboard/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response)


async def read(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield orjson.loads(line.removeprefix("data: "))


async def until(figures: AsyncIterator[dict[str, Any]], part: str, condition: Any) -> Any:
    """The first state of `part` that meets the condition."""
    async with asyncio.timeout(20):
        async for changed in figures:
            if part in changed and condition(changed[part]):
                return changed[part]
    raise AssertionError("the stream ended")


async def test_a_browser_is_sent_to_the_page_and_ollamas_clients_get_what_they_expect(serve: Service) -> None:
    client = await serve()
    browser = await client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (302, "/dashboard")
    for method in ("GET", "HEAD"):
        answer = await client.request(method, "/")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert (await client.get("/")).text == "Ollama is running"


async def test_the_page_loads_only_what_this_service_serves(serve: Service) -> None:
    client = await serve()
    page = await client.get("/dashboard")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    wanted = set(re.findall(r'(?:src|href)="/dashboard/([^"]+)"', page.text))
    assert wanted <= ASSETS
    for name in ASSETS:
        found = await client.get(f"/dashboard/{name}")
        assert (found.status_code, found.headers["x-content-type-options"]) == (200, "nosniff")
        assert found.content == (FOLDER / name).read_bytes()
        for imported in re.findall(r'from "\./([^"]+)"', found.text) if name.endswith(".js") else ():
            assert imported in ASSETS
        if not name.startswith("uPlot"):
            assert not re.search(r"https?://(?!www\.w3\.org)", found.text)
    assert (await client.get("/dashboard/../app.py")).status_code == 404
    assert (await client.get("/dashboard/index.html")).status_code == 404


async def test_every_file_of_the_page_is_served_or_is_the_page_or_a_licence() -> None:
    assert {path.name for path in FOLDER.iterdir()} == ASSETS | {"index.html", "uPlot.LICENSE"}


async def test_a_page_gets_every_part_and_then_what_a_question_changes(serve: Service) -> None:
    client = await serve()
    async with opened(client) as figures:
        first = await anext(figures)
        assert set(first) == PARTS
        assert (first["health"]["status"], first["breaker"]["state"]) == ("healthy", "CLOSED")
        assert [worker["version"] for worker in first["workers"]]
        assert (first["cache"]["policy"], first["cache"]["hits"], first["recent"]) == ("guarded", 0, [])
        await ask(client, "Why is the sky blue?")
        await ask(client, "Why is the sky blue?")
        cache = await until(figures, "cache", lambda part: part["hits"] == 1)
        assert (cache["misses"], cache["exact_hits"]) == (1, 1)


async def test_the_latest_outcomes_of_every_worker_without_texts(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    await ask(one, "Why is the sky blue?")
    await ask(other, "Why is the sky blue?")
    stub.behaviour("status", status=404, message="model 'llama3.2' not found", path="/api/chat")
    assert (await one.post("/query", json={"question": "Which model?"})).status_code == 404
    async with opened(one) as figures:
        outcomes = await until(figures, "recent", lambda part: len(part) == 3)
    found = {outcome["status"]: outcome for outcome in outcomes}
    assert set(found) == {"hit", "miss", "error"}
    assert (found["hit"]["kind"], found["hit"]["similarity"]) == ("exact", 1.0)
    assert found["hit"]["worker"] != found["miss"]["worker"]
    assert found["miss"]["ms"] > 0
    assert (found["error"]["error"], found["error"]["ms"]) == ("upstream-failed", None)
    assert all(outcome["question"] is None for outcome in outcomes)


async def test_texts_only_where_the_setting_allows_them(serve: Service, redis: Redis) -> None:
    client = await serve(server={"log_questions": True})
    await ask(client, "Why is the sky blue?")
    async with opened(client) as figures:
        outcomes = await until(figures, "recent", lambda part: len(part) == 1)
    assert outcomes[0]["question"] == "Why is the sky blue?"
    assert 0 < await redis.pttl("rag:recent") <= 24 * 3600 * 1000


async def test_without_the_setting_no_worker_shows_texts_that_another_kept(serve: Service) -> None:
    keeping, other = await serve(server={"log_questions": True}), await serve()
    await ask(keeping, "Why is the sky blue?")
    async with opened(other) as figures:
        outcomes = await until(figures, "recent", lambda part: len(part) == 1)
    assert outcomes[0]["question"] is None


@pytest.mark.parametrize(("key", "seen"), [("acme-key", None), ("root-key", "Why is the sky blue?")])
async def test_only_admins_see_what_other_tenants_asked(serve: Service, key: str, seen: str | None) -> None:
    client = await serve(**ADMINS, server={"log_questions": True})
    headers = {"Authorization": "Bearer root-key"}
    await client.post("/query", json={"question": "Why is the sky blue?"}, headers=headers)
    await client.post("/query", json={"question": "Which?", "model": "a secret word"}, headers=headers)
    async with opened(client, Authorization=f"Bearer {key}") as figures:
        outcomes = await until(figures, "recent", lambda part: len(part) == 2)
    assert (outcomes[1]["question"], outcomes[0]["model"]) == (seen, seen and "a secret word")
    assert [outcome["status"] for outcome in outcomes] == ["miss", "miss"]


async def test_the_fleet_keeps_twenty_outcomes(serve: Service, redis: Redis) -> None:
    client = await serve()
    for turn in range(4):
        await asyncio.gather(*(ask(client, f"What is number {turn} {number}?") for number in range(10)))
        written = min(20, 10 * (turn + 1))
        await wait_until_async(partial(has_length, redis, written))
    assert await redis.xlen("rag:recent") == 20


async def has_length(redis: Redis, length: int) -> bool:
    return bool(await redis.xlen("rag:recent") >= length)


@pytest.mark.parametrize(("key", "names"), [(None, None), ("acme-key", None), ("root-key", {})])
async def test_only_admins_see_tenants(serve: Service, key: str | None, names: object) -> None:
    client = await serve(**ADMINS)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with opened(client, **headers) as figures:
        assert (await anext(figures))["bulkhead"]["waiting_by_tenant"] == names


async def test_without_redis_the_page_says_so_and_goes_on(serve: Service, redis_server: EmbeddedRedis) -> None:
    client = await serve()
    async with opened(client) as figures:
        await anext(figures)
        redis_server.kill()
        assert await until(figures, "health", lambda part: not part["database"])
        redis_server.start()
        workers = await until(figures, "workers", lambda part: part is not None)
        assert len(workers) == 1


async def test_a_head_request_ends(serve: Service) -> None:
    client = await serve()
    async with asyncio.timeout(20):
        head = await client.head("/dashboard/events")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")
        assert (await client.get("/health/live")).status_code == 200  # on the same connection


async def test_more_pages_than_a_worker_allows_are_refused(serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.endpoints.dashboard.MOST_PAGES", 1)
    client = await serve()
    async with opened(client) as figures:
        await anext(figures)
        refused = await client.get("/dashboard/events", timeout=10)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")


async def test_the_page_gets_each_backend_with_its_place_load_and_drain(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama={"ollama_base_url": f"{stub.base_url}#tier=2"})
    async with opened(client) as figures:
        [backend] = (await anext(figures))["backends"]
        assert (backend["name"], backend["tier"], backend["drained"]) == ("ollama", 2, False)
        assert backend == (await client.get("/api/backends")).json()["backends"][0]
        assert (await client.post("/api/backends/ollama/drain?force=true")).status_code == 200
        [backend] = await until(figures, "backends", lambda part: part[0]["drained"])
        assert backend["drained_at"]
