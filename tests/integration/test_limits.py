"""Rate limits and budgets of keys and tenants, with several workers of the real service."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.ports.limits import Charge, Limits, LocalCounts
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.limits import RedisLimits
from tests.support.round_trips import round_trips
from tests.support.service import Service
from tests.support.waiting import wait_until_async

ROOT = {"Authorization": "Bearer the-admin-key"}
ACCESS: dict[str, Any] = {"require_keys": True, "admin_keys": "the-admin-key"}


async def new_key(client: httpx.AsyncClient, tenant: str = "acme", **limits: Any) -> dict[str, str]:
    response = await client.post("/api/keys", json={"tenant": tenant, **limits}, headers=ROOT)
    assert response.status_code == 201, response.text
    return {"Authorization": f"Bearer {response.json()['secret']}"}


async def ask(client: httpx.AsyncClient, headers: dict[str, str] | None, question: str, **more: Any) -> httpx.Response:
    return await client.post("/query", json={"question": question, **more}, headers=headers)


def left(response: httpx.Response) -> dict[str, tuple[int, int]]:
    """Returns what is left of each limit, and when all of it is there again."""
    found = re.findall(r'"([a-z-]+)";r=(\d+);t=(\d+)', response.headers["RateLimit"])
    return {name: (int(remaining), int(reset)) for name, remaining, reset in found}


async def test_requests_are_counted_exactly_over_all_workers(serve: Service) -> None:
    workers = [await serve(access=ACCESS) for _ in range(3)]
    key, other = await new_key(workers[0], requests_per_minute=5), await new_key(workers[0])
    await ask(workers[0], other, "What?")
    calls = [ask(workers[number % 3], key, "What?") for number in range(40)]
    responses = await asyncio.gather(*calls)
    found = Counter(response.status_code for response in responses)
    assert found == {200: 5, 429: 35}, "one more each 12 s"
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["limit"] == "key-requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 12
    assert refused.headers["RateLimit-Policy"] == '"key-requests";q=5;w=60'
    assert (await ask(workers[1], other, "What?")).status_code == 200, "another key"


async def test_headers_show_what_is_left_and_warn(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 100})
    key = await new_key(client, requests_per_minute=5)
    responses = [await ask(client, key, "What?") for _ in range(5)]
    assert [left(one)["key-requests"][0] for one in responses] == [4, 3, 2, 1, 0]
    assert left(responses[-1])["tenant-requests"][0] >= 95
    assert 45 <= left(responses[-1])["key-requests"][1] <= 60
    warned = [one.headers.get("X-Ragherd-Limit-Warning") for one in responses]
    assert warned == [None, None, None, None, "key-requests"]
    assert (await ask(client, key, "What?")).status_code == 429
    metrics = (await client.get("/metrics", headers=ROOT)).text
    assert 'ragherd_rate_limited_total{limit="key-requests",outcome="refused"} 1.0' in metrics
    assert 'ragherd_rate_limited_total{limit="key-requests",outcome="warned"} 2.0' in metrics


async def test_a_tenant_s_keys_share_its_limit_and_other_tenants_do_not(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 2})
    first, second, foreign = await new_key(client), await new_key(client), await new_key(client, "globex")
    found = [(await ask(client, key, "What?")).status_code for key in (first, second, first, foreign)]
    assert found == [200, 200, 429, 200]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "Who?"}], "stream": False}, "error"),
        ("/api/chat", {"messages": [{"role": "user", "content": "Who?"}]}, "error"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}, "error"),
        ("/api/embed", {"input": "Who?"}, "error"),
        ("/api/generate", {"prompt": "Who?", "stream": False, "raw": True}, "error"),
    ],
)
async def test_other_apis_are_limited_in_their_form(
    serve: Service, path: str, body: dict[str, Any], field: str
) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    key = await new_key(client)
    model = "nomic-embed-text" if path == "/api/embed" else "llama3.2"
    responses = [await client.post(path, json={**body, "model": model}, headers=key) for _ in range(2)]
    assert [one.status_code for one in responses] == [200, 429]
    assert responses[0].headers["RateLimit-Policy"] == '"tenant-requests";q=1;w=60'
    assert responses[1].headers["Content-Type"] == "application/json"
    assert field in responses[1].json()
    if path.startswith("/v1"):
        assert responses[1].json()["error"]["type"] == "rate_limit_error"


async def test_tokens_of_a_minute_and_of_a_day_are_charged_after_the_answer(serve: Service) -> None:
    one, other = await serve(access=ACCESS), await serve(access=ACCESS)
    for limit in ("tokens_per_minute", "tokens_per_day"):
        limits: dict[str, Any] = {limit: 5}
        key = await new_key(one, **limits)
        name = f"key-{'day' if limit == 'tokens_per_day' else 'tokens'}"
        first = await ask(one, key, f"What of {limit}?")
        assert (first.status_code, left(first)[name][0]) == (200, 5)

        async def is_spent(key: dict[str, str] = key) -> bool:
            return (await ask(other, key, "Another?")).status_code == 429

        await wait_until_async(is_spent)
        refused = await ask(one, key, "Another?")
        assert refused.json()["limit"] == name
        assert int(refused.headers["Retry-After"]) >= 1


async def test_hits_may_be_free(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1, "rate_limit_free_hits": True})
    key = await new_key(client)
    assert [(await ask(client, key, "What?")).status_code for _ in range(6)] == [200] * 6
    assert (await ask(client, key, "Where?")).status_code == 429


async def test_a_stream_is_refused_before_it_begins(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    key = await new_key(client)
    responses = [await ask(client, key, "What?", stream=True) for _ in range(2)]
    assert [one.status_code for one in responses] == [200, 429]
    assert left(responses[0])["tenant-requests"][0] == 0


async def test_without_redis_each_worker_grants_its_share(serve: Service, redis_server: EmbeddedRedis) -> None:
    access = {"rate_limit_requests_per_minute": 4}
    workers = [await serve(access=access) for _ in range(2)]

    async def both_known() -> bool:
        return len((await workers[0].get("/api/workers")).json()["workers"]) == 2

    await wait_until_async(both_known)
    redis_server.kill()
    try:
        responses = [await ask(workers[0], None, "What?") for _ in range(5)]
    finally:
        redis_server.start()
    assert Counter(one.status_code for one in responses)[200] in (2, 4), "4 if the worker knew of no other yet"
    assert responses[-1].status_code == 429


async def test_the_charge_costs_no_round_trip(serve: Service) -> None:
    client = await serve(access={"rate_limit_requests_per_minute": 1000})
    await ask(client, None, "What?")
    with round_trips() as written:
        assert (await ask(client, None, "What?")).json()["cache"]["kind"] == "exact"
    asked = [one for one in written if "answers.find" in one or "limits.admit" in one]
    assert asked == ["answers.find + limits.admit"]


async def test_the_script_counts_as_a_worker_without_redis_does(redis: Redis) -> None:
    store = RedisLimits(await gate(redis), Keys())
    limits = Limits(requests_per_minute=7, tokens_per_minute=100, tokens_per_day=150)
    counts = LocalCounts()
    for number in range(9):
        charge = Charge("acme", [("k", limits)], counts_hits=True)
        await store.admit(charge)
        wait, _ = counts.look(limits, 1_000_000.0)
        assert charge.decision is not None
        assert charge.decision.allowed == (wait == 0), number
        if wait == 0:
            counts.take(limits, 1_000_000.0)
        if number == 3:
            await store.spend(charge, 90, 60)
            counts.spend(limits, 1_000_000.0, 90, 60)
    ttl = await redis.pttl(Keys().limit(charge.owner, "k"))
    assert 0 < ttl <= 86_400_000


async def gate(redis: Redis) -> Any:
    found = HealthGatedRedis(redis, 8)
    assert await found.check()
    return found
