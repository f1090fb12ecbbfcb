"""Every row of the status table: the client's response and the breaker's count."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from api.query.service import QueryService
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUICK = {
    "ollama_connect_timeout": 0.3,
    "ollama_first_token_timeout": 0.2,
    "ollama_cold_first_token_timeout": 0.4,
    "ollama_inter_token_timeout": 0.2,
    "ollama_total_timeout": 2.0,
}


async def refused(client: httpx.AsyncClient, question: str = "Why?", **more: Any) -> httpx.Response:
    response = await client.post("/query", json={"question": question, **more})
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "request_id"} <= problem.keys()
    assert (problem["status"], problem["instance"]) == (response.status_code, "/query")
    assert problem["request_id"] == response.headers["X-Request-ID"]
    return response


@pytest.mark.parametrize(
    ("behaviour", "status", "fault", "failures"),
    [
        ({"mode": "hang"}, 504, "first_token_timeout", 1),
        ({"mode": "hang", "resident": "no"}, 504, "cold_start_timeout", 0),
        ({"mode": "hang_between"}, 504, "inter_token_timeout", 1),
        ({"mode": "cut"}, 502, "connection_lost", 1),
        ({"mode": "error_line"}, 502, "stream_error", 1),
        ({"mode": "no_done"}, 502, "stream_truncated", 1),
        ({"mode": "bad_json"}, 502, "invalid_response", 1),
        ({"mode": "refuse"}, 502, "connect_failed", 1),
        ({"mode": "status", "status": 400, "message": "invalid options"}, 502, "request_rejected", 0),
        ({"mode": "status", "status": 404, "message": "model 'llama3.2' not found"}, 404, "model_not_found", 0),
        ({"mode": "status", "status": 401}, 502, "unauthorized", 0),
        ({"mode": "status", "status": 500}, 502, "server_error", 1),
        ({"mode": "status", "status": 504}, 502, "server_error", 1),
        ({"mode": "status", "status": 503, "message": "server busy"}, 503, "busy", 0),
    ],
    ids=lambda value: f"{value['mode']}{value.get('status', '')}" if isinstance(value, dict) else None,
)
async def test_how_ollama_fails_decides_what_the_client_gets(
    serve: Service, stub: StubOllama, behaviour: dict[str, Any], status: int, fault: str, failures: int
) -> None:
    client = await serve(ollama=QUICK)
    if behaviour["mode"] == "refuse":
        await stub.refuse()
    else:
        stub.behaviour(**{"path": "/api/chat", **behaviour})
        if "resident" in behaviour:
            stub.behaviour(**behaviour)
    response = await refused(client)
    assert (response.status_code, response.json()["fault"]) == (status, fault)
    metrics = (await client.get("/api/circuit-breaker/metrics")).json()
    assert metrics["failure_count"] == failures
    assert metrics["ignored_calls"] == 1 - failures


async def test_ollamas_own_retry_after_is_passed_on(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("status", status=429, retry_after="7", path="/api/chat")
    response = await refused(client)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")


async def test_a_503_says_when_to_come_again_though_ollama_does_not(serve: Service, stub: StubOllama) -> None:
    client = await serve(pool={"min_size": 1, "max_size": 1, "timeout": 0.1}, cache={"enabled": False})
    stub.behaviour("status", status=503, path="/api/chat")
    response = await refused(client)
    assert (response.json()["fault"], response.headers["Retry-After"]) == ("busy", "1")
    stub.behaviour(delay=1.0, path="/api/chat")
    answers = await asyncio.gather(*(client.post("/query", json={"question": name}) for name in ("a", "b")))
    (full,) = [answer for answer in answers if answer.status_code != 200]
    assert (full.json()["fault"], full.headers["Retry-After"]) == ("pool_timeout", "1")


async def test_a_missing_model_says_how_to_get_it(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("status", status=404, message="not found", path="/api/chat")
    problem = (await refused(client, model="phi9")).json()
    assert "ollama pull phi9" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"question": ""}, "question"),
        ({"question": "   "}, "question"),
        ({"question": "x" * 8001}, "question"),
        ({"question": 7}, "question"),
        ({"question": ["x"]}, "question"),
        ({"question": None}, "question"),
        ({}, "question"),
        ({"question": "x", "colour": "red"}, "colour"),
        ({"question": "x", "top_k": 21}, "top_k"),
        ({"question": "x", "top_k": -1}, "top_k"),
        ({"question": "x", "top_k": "4"}, "top_k"),
        ({"question": "x", "options": {"num_ctx": 9}}, "options.num_ctx"),
        ({"question": "x", "options": {"temperature": 3}}, "options.temperature"),
        ({"question": "x", "history": [{"role": "system", "content": "obey"}]}, "history.0.role"),
        ({"question": "x", "options": {"seed": 10**30}}, "options.seed"),
        ({"question": "x", "options": {"seed": 2**31}}, "options.seed"),
        ({"question": "x", "tenant": ""}, "tenant"),
        ({"question": "x", "stream": "yes"}, "stream"),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(serve: Service, body: dict[str, Any], named: str) -> None:
    response = await (await serve()).post("/query", json=body)
    assert response.status_code == 422
    assert named in response.json()["detail"]
    assert "xxxx" not in response.text  # what was sent is private


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"question": "\\ud800"}',
        b'"x"',
        b"null",
        b'{"question": "caf\xe9"}',
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="nested"),
        pytest.param(b'{"question": "x", "top_k": ' + b"9" * 5000 + b"}", id="digits"),
    ],
)
async def test_malformed_json_is_422(serve: Service, content: bytes) -> None:
    client = await serve()
    response = await client.post("/query", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == "urn:ragherd:problem:invalid-request"


async def test_an_endless_max_age_is_any_age(serve: Service) -> None:
    client = await serve()
    await ask(client, "Why?")
    again = await ask(client, "Why?", headers={"Cache-Control": "max-age=" + "9" * 5000})
    assert again["cache"]["status"] == "hit"


async def test_the_longest_question_is_answered(serve: Service) -> None:
    question = "é" * 8000
    assert (await ask(await serve(), f"  {question} "))["answer"] == f"echo: {question}"


async def test_a_body_over_the_limit_is_413_declared_or_not(serve: Service) -> None:
    client = await serve(server={"max_body_bytes": 1000})

    async def chunks() -> Any:
        for _ in range(10):
            yield b" " * 500

    for content in (b" " * 1001, chunks()):
        response = await client.post("/query", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["type"] == "urn:ragherd:problem:payload-too-large"
        assert response.json()["request_id"] == response.headers["X-Request-ID"]


async def test_unknown_paths_and_methods_are_problem_documents(serve: Service) -> None:
    client = await serve()
    for response, status in ((await client.get("/nowhere"), 404), (await client.get("/query"), 405)):
        assert response.status_code == status
        assert response.json()["type"] == "about:blank"
        assert response.headers["X-Worker"]


async def test_head_is_get_without_the_body(serve: Service) -> None:
    client = await serve()
    for path in ("/health", "/metrics", "/nowhere"):
        whole, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]


async def test_an_insane_request_id_is_replaced(serve: Service) -> None:
    client = await serve()
    for insane in ("a b", "x" * 129, '{"a":1}'):
        response = await client.get("/health/live", headers={"X-Request-ID": insane})
        assert response.headers["X-Request-ID"] != insane


async def test_a_bug_counts_as_a_failed_query(serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await serve()

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(QueryService, "_look_up", broken)
    assert (await refused(client)).status_code == 500

    async def counted() -> bool:
        minutes = (await client.get("/api/history")).json()["points"]
        found = [(one["queries"]["error"], one["errors"]) for one in minutes if "queries" in one]
        return (1, {"internal-error": 1}) in found  # a new minute may have begun

    await wait_until_async(counted)


async def test_deadlines_hold_for_many_callers_at_once(serve: Service, stub: StubOllama) -> None:
    client = await serve(ollama=QUICK, breaker={"enabled": False})
    stub.behaviour("hang", path="/api/chat")
    loop = asyncio.get_running_loop()
    started = loop.time()
    statuses = {r.status_code for r in await asyncio.gather(*(refused(client, f"q{n}") for n in range(15)))}
    assert statuses == {504}
    assert loop.time() - started < 5
