"""Streamed answers: the events `sources`, `token` and `done`, and what happens on errors and disconnects.

Read this file second.
"""

from __future__ import annotations

from tests.stub_ollama import StubOllama
from tests.support.event_stream import connected, events, streamed, text_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"


async def test_an_answer_streams_as_sources_tokens_and_done(serve: Service) -> None:
    response, found = await streamed(await serve(), QUESTION)
    names = [name for name, _ in found]
    assert names == ["sources", *["token"] * 7, "done"]
    assert found[0] == ("sources", [])
    assert text_of(found) == f"echo: {QUESTION}"
    assert response.headers["Cache-Status"] == "ragherd; fwd=miss"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"


async def test_the_done_event_is_the_response_without_the_answer(serve: Service) -> None:
    client = await serve()
    _, found = await streamed(client, QUESTION, headers={"X-Request-ID": "mine-1"})
    done = found[-1][1]
    assert done.keys() == (await ask(client, "something else")).keys() - {"answer"}
    assert (done["request_id"], done["model"]) == ("mine-1", "llama3.2")
    assert done["cache"]["status"] == "miss"
    assert done["cache"]["entry"].startswith("rag:cache:")
    assert done["usage"]["completion_tokens"] == 7
    assert done["timings_ms"]["total"] >= done["timings_ms"]["generate"] > 0


async def test_the_first_token_arrives_before_the_rest_is_generated(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("hang_between")
    async with client.stream("POST", "/query", json={"question": QUESTION, "stream": True}) as response:
        arriving = events(response)
        assert await anext(arriving) == ("sources", [])
        assert await anext(arriving) == ("token", {"text": "echo:"})


async def test_the_accept_header_requests_a_stream(serve: Service) -> None:
    client = await serve()
    response = await client.post("/query", json={"question": QUESTION}, headers={"Accept": "text/event-stream"})
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.text.startswith("event: sources\ndata: []\n\nevent: token\ndata: {")


async def test_a_streamed_answer_is_cached_and_hits_stream_too(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    _, first = await streamed(one, QUESTION)
    assert (await ask(other, QUESTION))["answer"] == text_of(first)
    for question, kind in ((QUESTION, "exact"), (PARAPHRASE, "semantic")):
        response, found = await streamed(other, question)
        assert [name for name, _ in found] == ["sources", "token", "done"]
        assert text_of(found) == text_of(first)
        assert found[-1][1]["cache"]["entry"] == first[-1][1]["cache"]["entry"]
        assert response.headers["Cache-Status"].startswith("ragherd; hit; ttl=3")
        assert response.headers["Cache-Status"].endswith(f"; detail={kind}")
        assert response.headers["Age"] == "0"
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_an_error_before_the_first_token_is_a_problem_document(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("status", status=500, path="/api/chat")
    response = await client.post("/query", json={"question": QUESTION, "stream": True})
    assert (response.status_code, response.headers["Content-Type"]) == (502, "application/problem+json")


async def test_an_error_after_the_first_token_is_an_event(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("error_line", path="/api/chat")
    response, found = await streamed(client, QUESTION)
    assert [name for name, _ in found] == ["sources", "token", "error"]
    problem = found[-1][1]
    assert (problem["status"], problem["fault"], problem["instance"]) == (502, "stream_error", "/query")
    assert problem["request_id"] == response.headers["X-Request-ID"]


async def test_a_disconnect_stops_the_generation(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("hang_between", path="/api/chat")
    async with connected(client, QUESTION, stream=True) as reader:
        await reader.readuntil(b"event: token")

    async def stopped() -> bool:
        return bool(stub.stats["cancelled"] == 1 and stub.stats["in_flight"] == 0)

    await wait_until_async(stopped)


async def test_x_request_timeout_sets_a_deadline(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour("hang", path="/api/chat")
    response = await client.post("/query", json={"question": QUESTION}, headers={"X-Request-Timeout": "0.1"})
    assert response.status_code == 504
    assert response.json()["type"] == "urn:ragherd:problem:deadline-passed"
