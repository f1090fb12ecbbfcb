"""Refusals that a worker remembers, with the real service."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import httpx
import pytest

from api.embedded.redis_server import EmbeddedRedis
from api.ports.limits import TENANT
from api.redis_store.connections import BatchingRedis
from api.redis_store.keys import Keys
from api.values import owner_of
from tests.integration.test_limits import ACCESS, ROOT, VOTE, ask, left, new_key
from tests.stub_ollama import StubOllama
from tests.support.round_trips import round_trips
from tests.support.service import Service
from tests.support.waiting import eventually, wait_until_async

QUESTIONS: dict[str, Any] = {
    "/query": {"question": "Who?"},
    "/api/chat": {"model": "llama3.2", "messages": [{"role": "user", "content": "Who?"}]},
    "/v1/chat/completions": {"model": "llama3.2", "messages": [{"role": "user", "content": "Who?"}]},
    "/v1/messages": {"model": "llama3.2", "max_tokens": 9, "messages": [{"role": "user", "content": "Who?"}]},
    "/api/embed": {"model": "nomic-embed-text", "input": "Who?"},
    "/feedback": VOTE,
}


async def unread(client: httpx.AsyncClient, path: str, key: dict[str, str]) -> httpx.Response:
    """Sends only the head of a request, and returns the response."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "40", **key}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
    try:
        async with asyncio.timeout(5):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = httpx.Headers(dict(line.split(": ", 1) for line in lines))
            body = await reader.readexactly(int(headers["Content-Length"]))
    finally:
        writer.close()
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


@pytest.mark.parametrize("path", QUESTIONS)
async def test_a_refusal_is_repeated_before_the_body_is_read(serve: Service, path: str) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    key = await new_key(client)
    assert (await ask(client, key, "What?")).status_code == 200
    refused = await client.post(path, json=QUESTIONS[path], headers=key)
    with round_trips() as written:
        again = await unread(client, path, key)
    assert not [one for one in written if "limits" in one or "answers" in one]
    assert (refused.status_code, again.status_code) == (429, 429)
    own = {"date", "x-request-id", "retry-after"}
    shown, repeated = [{k: v for k, v in one.headers.items() if k not in own} for one in (refused, again)]
    assert shown.pop("ratelimit").partition(";t")[0] == repeated.pop("ratelimit").partition(";t")[0]
    assert shown == repeated
    assert 0 <= int(refused.headers["Retry-After"]) - int(again.headers["Retry-After"]) <= 5
    assert {**refused.json(), "request_id": ""} == {**again.json(), "request_id": ""}
    metrics = (await client.get("/metrics", headers=ROOT)).text
    assert 'ragherd_rate_limited_total{limit="tenant-requests",outcome="refused"} 2.0' in metrics


async def test_a_refusal_ends_when_an_operator_resets_the_counts(serve: Service, redis: BatchingRedis) -> None:
    client = await serve(access={**ACCESS, "token_budget_per_month": 1})
    key = await new_key(client)
    assert (await ask(client, key, "What?")).status_code == 200

    async def answers(status: int) -> bool:
        return (await ask(client, key, "What?")).status_code == status

    await wait_until_async(lambda: answers(429))
    await redis.delete(Keys().limit(owner_of("acme"), TENANT))
    await wait_until_async(lambda: answers(200))


TENANTS: dict[str, Any] = {"api_keys": "acme=key-1,globex=key-2", "rate_limit_requests_per_minute": 1}
ACME, GLOBEX = {"Authorization": "Bearer key-1"}, {"Authorization": "Bearer key-2"}


async def test_a_worker_remembers_refusals_while_redis_is_away_and_forgets_them_when_it_is_back(
    serve: Service, redis_server: EmbeddedRedis
) -> None:
    client = await serve(access=TENANTS)
    assert [(await ask(client, ACME, "What?")).status_code for _ in range(2)] == [200, 429]

    async def answers() -> bool:
        return (await ask(client, ACME, "What?")).status_code == 200

    async def is_refused_unread() -> bool:
        refused = await ask(client, ACME, "What?")
        assert (refused.status_code, left(refused)["tenant-requests"][0]) == (429, 0)
        return (await unread(client, "/query", ACME)).status_code == 429

    redis_server.kill()
    try:
        await wait_until_async(answers)  # it has a count for itself, which starts at zero
        assert await is_refused_unread(), "by the worker's own count"
        assert (await ask(client, GLOBEX, "What?")).status_code == 200, "another tenant"
    finally:
        redis_server.start()
    await wait_until_async(answers)  # Redis is empty; the worker's own count would refuse for a minute
    assert await is_refused_unread(), "by Redis's count"


async def test_a_refusal_that_was_not_read_leaves_metrics_and_lines_in_the_log(
    serve: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await serve(access={**TENANTS, **ACCESS})
    assert (await ask(client, ACME, "What?")).status_code == 200
    before = await counted(client)
    capfd.readouterr()
    read = await ask(client, {**ACME, "X-Request-ID": "read"}, "Who?")
    question = await unread(client, "/query", {**ACME, "X-Request-ID": "question"})
    embedding = await unread(client, "/api/embed", {**ACME, "X-Request-ID": "embedding"})
    responses = {"read": read, "question": question, "embedding": embedding}
    assert [one.status_code for one in responses.values()] == [429] * 3
    assert [one.headers["X-Request-ID"] for one in responses.values()] == list(responses)
    requests, failed = await logged(capfd, responses)
    for name, line in requests.items():
        assert (line["status"], line["error"]) == (429, "rate-limited")
        assert (line["tenant_hash"], line["bytes"]) == (owner_of("acme"), len(responses[name].content))
    assert [line["route"] for line in requests.values()] == ["/query", "/query", "/api/embed"]
    of_body = {"model", "priority"}
    assert requests["read"].keys() - requests["question"].keys() == of_body
    assert failed.keys() == {"read", "question"}, "an embedding is not a question"
    assert failed["read"].keys() - failed["question"].keys() == {"model"}
    assert failed["question"]["limit"] == "tenant-requests"
    after = await counted(client)
    assert after - before == {
        'ragherd_rate_limited_total{limit="tenant-requests",outcome="refused"}': 3,
        'ragherd_rate_limited_total{limit="tenant-requests",outcome="warned"}': 3,
        'ragherd_queries_total{kind="none",status="error"}': 2,
        'ragherd_http_request_duration_seconds_count{method="POST",route="/query",status="429"}': 2,
        'ragherd_http_request_duration_seconds_count{method="POST",route="/api/embed",status="429"}': 1,
    }


async def counted(client: httpx.AsyncClient) -> Counter[str]:
    """Returns the metrics of questions, limits and requests."""
    names = r"rate_limited_total|queries_total|http_request_duration_seconds_count"
    text = (await client.get("/metrics", headers=ROOT)).text
    found = re.findall(rf"^(ragherd_(?:{names})\{{.*\}}) (.+)$", text, re.MULTILINE)
    return Counter({name: int(float(value)) for name, value in found if "/metrics" not in name})


async def logged(capfd: pytest.CaptureFixture[str], ids: Collection[str]) -> list[dict[str, dict[str, Any]]]:
    """Returns the access log of these requests, once it is complete, and their failed questions, by id."""
    lines: list[dict[str, Any]] = []

    def of(event: str) -> dict[str, dict[str, Any]]:
        found = {line["request_id"]: line for line in lines if line["event"] == event}
        return {name: found[name] for name in ids if name in found}

    def is_complete() -> bool:
        lines.extend(json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{"))
        return len(of("request")) == len(ids)

    await eventually(is_complete)
    return [of("request"), of("query_failed")]


async def test_a_revoked_key_is_unknown_also_while_its_limits_refuse_it(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1})
    created = (await client.post("/api/keys", json={"tenant": "acme"}, headers=ROOT)).json()
    key = {"Authorization": f"Bearer {created['secret']}"}
    assert [(await ask(client, key, "What?")).status_code for _ in range(3)] == [200, 429, 429]
    await client.delete(f"/api/keys/{created['id']}", headers=ROOT)

    async def is_unknown() -> bool:
        return (await unread(client, "/query", key)).status_code == 401

    await wait_until_async(is_unknown)
    assert (await ask(client, await new_key(client, "globex"), "What?")).status_code == 200, "another tenant"


async def test_a_refused_client_still_gets_what_is_free(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1, "rate_limit_free_hits": True})
    key = await new_key(client)
    found = [(await ask(client, key, question)).status_code for question in ("What?", "Who?", "What?", "Who?")]
    assert found == [200, 429, 200, 429]
    assert (await client.get("/documents", headers=key)).status_code == 200
    assert (await unread(client, "/feedback", key)).status_code == 429, "never free"
    assert (await ask(client, {**key, "Cache-Control": "no-cache"}, "What?")).status_code == 429


async def test_a_refused_follow_up_is_not_rewritten(serve: Service, stub: StubOllama) -> None:
    client = await serve(access=TENANTS, cache={"condense": True})
    history = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A lamp."}]
    assert (await ask(client, ACME, "And who made it?", history=history)).status_code == 200
    before = stub.stats["requests"]["/api/chat"]
    refused = [await ask(client, ACME, f"And where is its part {number}?", history=history) for number in range(3)]
    assert [one.status_code for one in refused] == [429] * 3
    assert stub.stats["requests"]["/api/chat"] == before, "the model was not asked"


async def test_a_refused_client_does_not_keep_the_embedder_busy(serve: Service, stub: StubOllama) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 1, "rate_limit_free_hits": True})
    key = await new_key(client)
    assert [(await ask(client, key, question)).status_code for question in ("What?", "Who?")] == [200, 429]
    before = stub.stats["requests"]["/api/embed"]
    found = await asyncio.gather(*[ask(client, key, f"Where is {number}?") for number in range(40)])
    assert {one.status_code for one in found} == {429}
    assert stub.stats["requests"]["/api/embed"] - before < 40
    assert (await ask(client, key, "What?")).status_code == 200


async def test_a_request_that_was_charged_on_the_short_way_is_not_refused_later(serve: Service) -> None:
    client = await serve(access={**ACCESS, "rate_limit_requests_per_minute": 2})
    key = await new_key(client)
    assert (await ask(client, key, "What?")).status_code == 200
    assert (await client.delete("/api/semantic-cache", params={"tenant": "acme"}, headers=ROOT)).is_success
    found = await asyncio.gather(*[ask(client, key, "What?") for _ in range(6)])
    assert Counter(one.status_code for one in found) == {200: 1, 429: 5}
