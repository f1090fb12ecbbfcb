"""Streams that fail before and after the first token, slow readers, and long silences."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.event_stream import connected, streamed, text_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "Why?"
QUICK = {
    "ollama_connect_timeout": 0.3,
    "ollama_first_token_timeout": 0.2,
    "ollama_cold_first_token_timeout": 0.4,
    "ollama_inter_token_timeout": 0.2,
    "ollama_total_timeout": 2.0,
}
NOTHING_KEPT = {"Cache-Control": "no-store"}


async def breaker(client: httpx.AsyncClient) -> dict[str, Any]:
    metrics: dict[str, Any] = (await client.get("/api/circuit-breaker/metrics")).json()
    return metrics


async def refused(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    """Returns the ordinary error response instead of a stream."""
    response = await client.post("/query", json={"question": QUESTION, "stream": True}, headers=headers)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code
    return response


# -- before and after the first token ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "status", "fault", "failures"),
    [
        ({"mode": "hang"}, 504, "first_token_timeout", 1),
        ({"mode": "close"}, 502, "connection_lost", 1),
        ({"mode": "status", "status": 400, "message": "invalid options"}, 502, "request_rejected", 0),
        ({"mode": "status", "status": 404, "message": "model 'llama3.2' not found"}, 404, "model_not_found", 0),
        ({"mode": "status", "status": 500}, 502, "server_error", 1),
        ({"mode": "status", "status": 503, "message": "server busy"}, 503, "busy", 0),
    ],
    ids=["hang", "close", "400", "404", "500", "503"],
)
async def test_before_the_first_token_a_failure_has_its_status(
    serve: Service, stub: StubOllama, behaviour: dict[str, Any], status: int, fault: str, failures: int
) -> None:
    client = await serve(ollama=QUICK)
    stub.behaviour(path="/api/chat", **behaviour)
    response = await refused(client)
    assert (response.status_code, response.json()["fault"]) == (status, fault)
    metrics = await breaker(client)
    assert (metrics["failure_count"], metrics["ignored_calls"]) == (failures, 1 - failures)


@pytest.mark.parametrize(
    ("mode", "status", "fault"),
    [
        ("hang_between", 504, "inter_token_timeout"),
        ("cut", 502, "connection_lost"),
        ("error_line", 502, "stream_error"),
        ("no_done", 502, "stream_truncated"),
        ("bad_json", 502, "invalid_response"),
    ],
)
async def test_after_the_first_token_a_failure_is_an_event_and_nothing_is_stored(
    serve: Service, stub: StubOllama, redis: Redis, mode: str, status: int, fault: str
) -> None:
    client = await serve(ollama=QUICK)
    stub.behaviour(mode, path="/api/chat")
    response, found = await streamed(client, QUESTION)
    assert [name for name, _ in found] == ["sources", *["token"] * (2 if mode == "no_done" else 1), "error"]
    problem = found[-1][1]
    assert (problem["status"], problem["fault"]) == (status, fault)
    assert problem["request_id"] == response.headers["X-Request-ID"]
    metrics = await breaker(client)
    assert (metrics["failure_count"], metrics["success_count"]) == (1, 0)
    assert await redis.keys("rag:cache:*") == []
    stub.behaviour()
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"


async def test_an_open_breaker_and_a_cache_without_the_answer_are_ordinary_errors(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(breaker={"failure_threshold": 1})
    assert (await refused(client, **{"Cache-Control": "only-if-cached"})).json()["type"].endswith(":not-cached")
    stub.behaviour("cut", path="/api/chat")
    await streamed(client, QUESTION)
    response = await refused(client)
    assert (response.status_code, response.json()["type"]) == (503, "urn:ragherd:problem:circuit-breaker-open")
    assert int(response.headers["Retry-After"]) >= 1


async def expired(client: httpx.AsyncClient) -> str:
    """Stores an answer that the cache serves only if Ollama fails."""
    answer: str = (await ask(client, QUESTION))["answer"]

    async def not_fresh() -> bool:
        only = await client.post("/query", json={"question": QUESTION}, headers={"Cache-Control": "only-if-cached"})
        return only.status_code == 504

    await wait_until_async(not_fresh)
    return answer


async def test_an_expired_answer_streams_where_ollama_gives_none(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"ttl": 0.2})
    answer = await expired(client)
    stub.behaviour("status", status=500, path="/api/chat")
    response, found = await streamed(client, QUESTION)
    assert response.headers["Cache-Status"] == "ragherd; hit; detail=stale"
    assert (text_of(found), found[-1][1]["cache"]["status"]) == (answer, "stale")


async def test_what_was_sent_is_not_taken_back_for_an_expired_answer(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"ttl": 0.2})
    answer = await expired(client)
    stub.behaviour("cut", path="/api/chat")
    _, found = await streamed(client, QUESTION)
    assert [name for name, _ in found] == ["sources", "token", "error"]
    whole = await ask(client, QUESTION)  # nothing of the other was sent yet
    assert (whole["answer"], whole["cache"]["status"]) == (answer, "stale")


async def test_a_stream_that_may_not_be_stored_is_not(serve: Service, redis: Redis) -> None:
    client = await serve()
    response, found = await streamed(client, QUESTION, headers=NOTHING_KEPT)
    assert response.headers["Cache-Status"] == "ragherd; fwd=request"
    assert found[-1][1]["cache"] == dict.fromkeys(("kind", "similarity", "age_seconds", "entry")) | {"status": "bypass"}
    assert await redis.keys("rag:cache:*") == []


@pytest.mark.parametrize("accept", ["text/event-stream;q=0", "application/json", "*/*", "text/*"])
async def test_who_does_not_ask_for_a_stream_gets_a_document(serve: Service, accept: str) -> None:
    response = await (await serve()).post("/query", json={"question": QUESTION}, headers={"Accept": accept})
    assert response.json()["answer"] == f"echo: {QUESTION}"


async def test_misses_and_refusals_count_once(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await streamed(client, QUESTION)
    await streamed(client, QUESTION)
    stub.behaviour("cut", path="/api/chat")
    await streamed(client, "something else")
    text = (await client.get("/metrics")).text
    assert 'ragherd_queries_total{kind="none",status="miss"} 1.0' in text
    assert 'ragherd_queries_total{kind="exact",status="hit"} 1.0' in text
    assert 'ragherd_queries_total{kind="none",status="error"} 1.0' in text
    assert 'ragherd_cache_lookups_total{result="miss"} 2.0' in text


@pytest.mark.parametrize(
    ("behaviour", "slow"),
    [
        ({"delay": 0.3}, 1),
        ({"delay": 0.3, "load_duration": 0.29}, 0),
        ({"pace": 0.06}, 0),
    ],
    ids=["a late first token", "a model that was loading", "slow tokens"],
)
async def test_a_whole_stream_is_a_success_and_slow_by_its_first_token(
    serve: Service, stub: StubOllama, behaviour: dict[str, Any], slow: int
) -> None:
    client = await serve(breaker={"slow_call_duration": 0.2})
    stub.behaviour(path="/api/chat", answer="one two three four five", **behaviour)
    await streamed(client, QUESTION)
    metrics = await breaker(client)
    assert (metrics["success_count"], metrics["failure_count"], metrics["slow_calls"]) == (1, 0, slow)


# -- the reader --------------------------------------------------------------------------------------------------------

WORD = "x" * 20_000 + " "


async def test_a_long_answer_arrives_whole(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(answer=WORD * 300)
    _, found = await streamed(await serve(), QUESTION)
    assert text_of(found) == (WORD * 300).strip()
    assert found[-1][0] == "done"


async def test_what_an_event_may_not_hold_arrives(serve: Service, stub: StubOllama) -> None:
    odd = "a\n\nevent: done\r\ndata: é\u2028\u0085\x00 \U0001f410 data: b"
    stub.behaviour(answer=odd)
    _, found = await streamed(await serve(), QUESTION)
    assert text_of(found) == odd


async def test_a_slow_reader_slows_ollama_and_one_who_takes_nothing_counts_as_gone(
    serve: Service, stub: StubOllama
) -> None:
    """Buffers would take what is sent: the stub's own connection must have stood still, for it never came to an end."""
    client = await serve(server={"stream_stall_timeout": 0.3})
    stub.behaviour(answer=WORD * 3000)  # 60 MB, far more than all sockets between hold
    async with connected(client, QUESTION, stream=True, top_k=0) as reader:
        await reader.readuntil(b"event: token")
        await wait_until_async(lambda: _left(stub))
    assert stub.stats["requests"]["/api/chat"] == 1
    metrics = await breaker(client)
    assert (metrics["ignored_calls"], metrics["failure_count"], metrics["success_count"]) == (1, 0, 0)


async def _left(stub: StubOllama) -> bool:
    return bool(stub.stats["cancelled"] == 1 and stub.stats["in_flight"] == 0)


async def test_heartbeats_are_sent_while_nothing_flows(serve: Service, stub: StubOllama) -> None:
    client = await serve(server={"stream_heartbeat": 0.05})
    stub.behaviour("hang_between", path="/api/chat")
    async with connected(client, QUESTION, stream=True) as reader:
        await reader.readuntil(b'data: {"text":"echo:"}\n\n')
        for _ in range(3):
            await reader.readuntil(b": ping\n\n")


async def test_heartbeats_are_no_part_of_the_answer(serve: Service, stub: StubOllama) -> None:
    client = await serve(server={"stream_heartbeat": 0.01})
    stub.behaviour(pace=0.05)
    body = {"question": QUESTION, "stream": True}
    raw = (await client.post("/query", json=body, headers=NOTHING_KEPT)).text
    assert ": ping\n\n" in raw
    _, found = await streamed(client, QUESTION)
    assert text_of(found) == f"echo: {QUESTION}"


# -- X-Request-Timeout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "calls"), [("/api/chat", 1), ("/api/embed", 0)])
async def test_the_callers_deadline_is_no_failure_of_ollama(
    serve: Service, stub: StubOllama, stream: bool, path: str, calls: int
) -> None:
    client = await serve()
    stub.behaviour("hang", path=path)
    body = {"question": QUESTION, "stream": stream}
    response = await client.post("/query", json=body, headers={"X-Request-Timeout": "0.2"})
    assert (response.status_code, response.headers["Content-Type"]) == (504, "application/problem+json")
    assert response.json()["type"] == "urn:ragherd:problem:deadline-passed"
    await wait_until_async(lambda: _left(stub))
    metrics = await breaker(client)
    assert (metrics["ignored_calls"], metrics["failure_count"]) == (calls, 0)


async def test_the_callers_deadline_in_mid_stream_is_an_event(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("hang_between", path="/api/chat")
    _, found = await streamed(client, QUESTION, headers={"X-Request-Timeout": "0.2"})
    assert [name for name, _ in found] == ["sources", "token", "error"]
    assert (found[-1][1]["status"], found[-1][1]["type"]) == (504, "urn:ragherd:problem:deadline-passed")
    await wait_until_async(lambda: _left(stub))
    metrics = await breaker(client)
    assert (metrics["ignored_calls"], metrics["failure_count"]) == (1, 0)


async def test_the_callers_deadline_lengthens_nothing(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama=QUICK)
    stub.behaviour("hang", path="/api/chat")
    response = await refused(client, **{"X-Request-Timeout": "1000"})
    assert response.json()["fault"] == "first_token_timeout"
    assert (await breaker(client))["failure_count"] == 1


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "inf", ""])
async def test_a_deadline_that_is_none_is_named(serve: Service, timeout: str) -> None:
    client = await serve()
    response = await client.post("/query", json={"question": QUESTION}, headers={"X-Request-Timeout": timeout})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["X-Request-Timeout"]
    assert response.json()["detail"] == "X-Request-Timeout: must be a number of seconds above 0"
