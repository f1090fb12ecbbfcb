"""Rate limits and budgets of keys and tenants, with several workers of the real service."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest

from api.embedded.redis_server import EmbeddedRedis
from api.errors import RateLimited
from api.ports.limits import TENANT, Charge, LimitPlan, Limits, LocalCounts
from api.query.limits import Limiter
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.scripts import lua
from api.redis_store.stores.limits import RedisLimits
from tests.stub_ollama import StubOllama
from tests.support.mcp_client import HEADERS, PROTOCOLS, mcp_client, message, problem_of, text_of
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


EXPLAINED = {"question": "Who?"}
VOTE = {"request_id": "unknown", "verdict": "good"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/api/semantic-cache/explain", EXPLAINED, 200), ("/feedback", VOTE, 404)],
)
async def test_what_asks_or_writes_is_a_request(serve: Service, path: str, body: dict[str, Any], status: int) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    key = await new_key(client)
    first, second = [await client.post(path, json=body, headers=key) for _ in range(2)]
    assert (first.status_code, second.status_code) == (status, 429)
    assert left(first) == {"tenant-requests": (0, 60)}
    assert 1 <= int(second.headers["Retry-After"]) <= 60
    assert (await client.get("/documents", headers=key)).status_code == 200, "reading is free"


async def test_an_upload_is_a_request_of_its_tenant_and_a_deletion_is_free(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    key = await new_key(client)

    async def upload(tenant: str) -> httpx.Response:
        return await client.post("/documents", json={"title": "T", "text": "Words.", "tenant": tenant}, headers=ROOT)

    stored = [await upload(tenant) for tenant in ("acme", "acme", "globex")]
    assert [one.status_code for one in stored] == [201, 429, 201]
    assert left(stored[0]) == {"tenant-requests": (0, 60)}
    assert stored[1].json()["limit"] == "tenant-requests"
    assert 1 <= int(stored[1].headers["Retry-After"]) <= 60
    assert (await ask(client, key, "Who?")).status_code == 429, "the same minute"
    gone = await client.delete(f"/documents/{stored[0].json()['id']}", headers=ROOT)
    assert gone.status_code == 204, "no limit keeps what shall go"


async def test_what_an_embedder_reads_counts_as_tokens(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_tokens_per_minute": 5})
    words = "a much longer text than five tokens of the minute have room for " * 3
    document = {"title": "T", "text": words, "tenant": "acme"}
    assert (await client.post("/documents", json=document, headers=ROOT)).status_code == 201
    body = {"model": "nomic-embed-text", "input": words}
    other = await new_key(client, "globex")
    assert (await client.post("/api/embed", json=body, headers=other)).status_code == 200
    for key in (await new_key(client), other):

        async def is_spent(key: dict[str, str] = key) -> bool:
            refused = await client.post("/feedback", json=VOTE, headers=key)
            return refused.status_code == 429 and refused.json()["limit"] == "tenant-tokens"

        await wait_until_async(is_spent)


@pytest.mark.parametrize("tool", ["ask", "search", "get_passage", "explain_cache"])
async def test_a_call_of_a_tool_is_a_request(serve: Service, tool: str) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    given = {"id": f"{'0' * 24}-1-0"} if tool == "get_passage" else {"question": "Who?"}
    for mode in PROTOCOLS:
        key = await new_key(client, mode)
        secret = key["Authorization"].removeprefix("Bearer ")
        async with mcp_client(client.base_url, key=secret, mode=mode) as agent:
            await agent.list_tools()
            first, refused = [await agent.call_tool(tool, given) for _ in range(2)]
        assert not first.is_error or tool == "get_passage"
        problem = problem_of(refused)
        assert (problem["type"], problem["limit"]) == ("urn:ragherd:problem:rate-limited", "tenant-requests")
        assert text_of(refused) == (
            "Rate limit exceeded: The limit 'tenant-requests' is used up. "
            f"Try again in {problem['retry_after_seconds']} s."
        )
        call = message("tools/call", name=tool, arguments=given)
        response = await client.post("/mcp", json=call, headers={**HEADERS, **key})
        assert left(response)["tenant-requests"][0] == 0


async def test_tokens_are_charged_after_the_answer(serve: Service) -> None:
    one, other = await serve(access=ACCESS), await serve(access=ACCESS)
    cases = [
        ("tokens_per_minute", "key-tokens", "Who wrote Faust?"),
        ("tokens_per_day", "key-day", "How tall is Mont Blanc?"),
        ("tokens_per_month", "key-month", "When do the trains to Avignon leave?"),
    ]
    for limit, name, question in cases:
        limits: dict[str, Any] = {limit: 5}
        key = await new_key(one, **limits)
        first = await ask(one, key, question)
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
    for _ in range(2):  # Redis then knows the scripts
        await ask(client, None, "What?")
    for script, headers in (("answers.reread", None), ("answers.find", {"X-Ragherd-Priority": "interactive"})):
        with round_trips() as written:
            assert (await ask(client, headers, "What?")).json()["cache"]["kind"] == "exact"
        asked = [one for one in written if script in one or "limits.admit" in one]
        assert len(asked) == 1
        assert f"{script} + limits.admit" in asked[0], "with what else is sent at this moment"


async def test_a_repeated_request_is_charged_once_whatever_path_it_takes(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 5})
    key = await new_key(client)
    spent = [left(await ask(client, key, "What?"))["tenant-requests"][0] for _ in range(3)]
    assert [first - second for first, second in pairwise(spent)] == [1, 1]
    assert (await client.delete("/api/semantic-cache", params={"tenant": "acme"}, headers=ROOT)).is_success
    generated = await ask(client, key, "What?")
    assert generated.json()["cache"]["status"] == "miss", "the short way found nothing"
    assert spent[-1] - left(generated)["tenant-requests"][0] == 1


async def test_a_refused_repeat_is_answered_again_when_it_may(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 2})
    key = await new_key(client)
    responses = [await ask(client, key, "What?") for _ in range(4)]
    assert [one.status_code for one in responses] == [200, 200, 429, 429]
    metrics = (await client.get("/metrics", headers=ROOT)).text
    assert 'ragherd_rate_limited_total{limit="tenant-requests",outcome="refused"} 2.0' in metrics


async def test_the_script_counts_as_a_worker_without_redis_does(redis: BatchingRedis) -> None:
    store = RedisLimits(await gate(redis), Keys())
    limits = Limits(7, 100, 150, 1000)
    counts = LocalCounts()
    for number in range(9):
        charge = Charge(LimitPlan("acme", ("k", limits)), counts_hits=True)
        await store.admit(charge)
        wait, _ = counts.look(limits, 1_000_000.0)
        assert charge.decision is not None
        assert (charge.decision.wait == 0) == (wait == 0), number
        if wait == 0:
            counts.take(limits, 1_000_000.0)
        if number == 3:
            await store.spend(charge.plan, 90, 60)
            counts.spend(limits, 1_000_000.0, 90, 60)
    ttl = await redis.pttl(Keys().limit(charge.plan.owner, "k"))
    assert 0 < ttl <= 32 * 86_400_000


@pytest.mark.parametrize(("seconds", "is_void"), [(3600, True), (20, False)])
def test_a_worker_s_counts_are_void_if_its_clock_was_set_back_far(seconds: int, is_void: bool) -> None:
    limits, now = Limits(2, 100), 1_000_000.0
    requests, tokens = LocalCounts(), LocalCounts()
    for _ in range(2):
        requests.take(limits, now + seconds)
    tokens.spend(limits, now + seconds, 100, 0)
    for counts in (requests, tokens):
        assert (counts.look(limits, now)[0] == 0) == is_void
    requests.take(limits, now)
    tokens.spend(limits, now, 10, 0)
    assert (requests.look(limits, now)[1][0] == 1) == is_void
    assert (tokens.look(limits, now)[1][2] == 90) == is_void


@pytest.mark.parametrize(("seconds", "is_void"), [(3600, True), (20, False)])
async def test_counts_are_void_if_the_clock_of_redis_was_set_back_far(
    redis: BatchingRedis, seconds: int, is_void: bool
) -> None:
    store, plan = RedisLimits(await gate(redis), Keys()), LimitPlan("acme", ("k", Limits(2, 100)))
    key, then_us = Keys().limit(plan.owner, "k"), ((await redis.time())[0] + seconds) * 1_000_000
    cases: list[dict[Any, Any]] = [{"requests_us": then_us + 60_000_000}, {"tokens": "100", "tokens_us": then_us}]
    for counted in cases:
        await redis.delete(key)
        await redis.hset(key, mapping=counted)
        charge = Charge(plan, counts_hits=True)
        await store.admit(charge)
        assert charge.is_refused != is_void
    await store.spend(plan, 10, 0)
    charge = Charge(plan, counts_hits=True)
    await store.admit(charge)
    assert charge.decision is not None
    assert (charge.decision.left[2] >= 90) == is_void


async def test_the_script_knows_the_months(redis: BatchingRedis) -> None:
    store = RedisLimits(await gate(redis), Keys())
    first_day = lua("stores/limits", "admit").partition("-- name: admit")[0]
    script = f"{first_day} return first_day(tonumber(ARGV[1]))"
    for year in (1970, 2000, 2024, 2026, 2099, 2100, 2101):
        for month in range(12):
            days = await redis.eval(script, 0, year * 12 + month)
            assert days == (date(year, month + 1, 1) - date(1970, 1, 1)).days
    plan = LimitPlan("acme", ("k", Limits(tokens_per_month=10)))
    await store.spend(plan, 4, 3)
    charge = Charge(plan, counts_hits=True)
    await store.admit(charge)
    seconds, _ = await redis.time()
    now = datetime.fromtimestamp(seconds, UTC)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    assert charge.decision is not None
    remaining, reset = charge.decision.left
    assert (remaining, abs((following - now).total_seconds() - reset) <= 2) == (7, True)
    counts = LocalCounts()
    counts.spend(Limits(tokens_per_month=10), now.timestamp(), 4, 3)
    _, left = counts.look(Limits(tokens_per_month=10), now.timestamp())
    assert abs(left[1] - reset) <= 2


# -- streams -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, headers: dict[str, str] | None, question: str) -> AsyncIterator[int]:
    """Opens a stream, and yields its status once it has begun."""
    body = {"question": question, "stream": True}
    async with client.stream("POST", "/query", json=body, headers=headers) as response:
        yield response.status_code


async def test_streams_are_counted_over_all_workers(serve: Service, stub: StubOllama) -> None:
    workers = [await serve(access={**ACCESS, "concurrent_streams": 3}) for _ in range(2)]
    key, colleague = await new_key(workers[0], concurrent_streams=2), await new_key(workers[0])
    stub.behaviour("hang_between", path="/api/chat")
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(streaming(workers[n % 2], key, f"What is {n}?")) for n in range(3)]
        others = [await stack.enter_async_context(streaming(workers[n], colleague, f"Who is {n}?")) for n in range(2)]
        assert (opened, others) == ([200, 200, 429], [200, 429])
        refused = await ask(workers[1], key, "What else?", stream=True)
        assert (refused.json()["limit"], refused.headers["Retry-After"]) == ("key-streams", "1")
    stub.behaviour("ok")
    assert 'limit="tenant-streams",outcome="refused"' in (await workers[1].get("/metrics", headers=ROOT)).text

    async def is_open() -> bool:
        return (await ask(workers[0], key, "And now?", stream=True)).status_code == 200

    await wait_until_async(is_open)


async def test_streams_of_a_killed_worker_stop_counting(redis: BatchingRedis) -> None:
    store, plan = RedisLimits(await gate(redis), Keys()), LimitPlan("acme", ("k", Limits(concurrent_streams=1)))
    key = Keys().limit_streams(plan.owner, "k")
    assert await store.open_stream(plan, "of-the-dead") is None
    assert await store.open_stream(plan, "b") == "k"
    assert 0 < await redis.pttl(key) <= 15_000
    await redis.zadd(key, {"of-the-dead": 1})  # its lease has ended
    assert await store.open_stream(plan, "b") is None
    assert await redis.zrange(key, 0, -1) == [b"b"]


async def test_an_open_stream_keeps_its_lease(redis: BatchingRedis) -> None:
    limiter = Limiter(RedisLimits(await gate(redis), Keys()), lambda: 1)
    charge = Charge(LimitPlan("acme", ("k", Limits(concurrent_streams=1))), counts_hits=True)
    key = Keys().limit_streams(charge.plan.owner, "k")
    async with limiter.stream(charge):
        await redis.flushall()  # as after a failover to an empty replica
        await limiter.renew()
        assert await redis.zcard(key) == 1
        with pytest.raises(RateLimited):
            await limiter.stream(charge).__aenter__()
    await limiter.aclose()
    assert await redis.zcard(key) == 0


async def test_without_redis_each_worker_grants_its_share_of_streams(redis: BatchingRedis) -> None:
    limiter = Limiter(RedisLimits(HealthGatedRedis(redis, 8), Keys()), lambda: 2)
    charge = Charge(LimitPlan("acme", (TENANT, Limits(concurrent_streams=5))), counts_hits=True)
    async with limiter.stream(charge), limiter.stream(charge):
        with pytest.raises(RateLimited, match="tenant-streams"):
            await limiter.stream(charge).__aenter__()
    async with limiter.stream(charge):
        await limiter.aclose()


async def gate(redis: BatchingRedis) -> Any:
    found = HealthGatedRedis(redis, 8)
    assert await found.check()
    return found
