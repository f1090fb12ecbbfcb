"""Ollama's official client works with the service after only its base URL is changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest

from tests.stub_ollama import StubOllama
from tests.stub_ollama.answers import vector
from tests.support.service import Service, ask

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"  # the stub embeds words without regard to their order
TURN = {"role": "user", "content": QUESTION}
MODEL = "llama3.2"


@pytest.fixture
async def service(serve: Service) -> httpx.AsyncClient:
    return await serve()


@pytest.fixture
async def client(service: httpx.AsyncClient) -> AsyncIterator[ollama.AsyncClient]:
    made = ollama.AsyncClient(str(service.base_url))
    yield made
    await made._client.aclose()


async def chat(service: httpx.AsyncClient, *, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [TURN], "stream": False, **changes}
    return await service.post("/api/chat", json=body, headers=headers)


# -- The official client -----------------------------------------------------------------------------------------------


async def test_chat(client: ollama.AsyncClient) -> None:
    answer = await client.chat(MODEL, [TURN], tools=[], think=False, keep_alive="5m", options={"temperature": 0.1})
    assert answer.message.content == f"echo: {QUESTION}"
    assert (answer.model, answer.done, answer.done_reason) == (MODEL, True, "stop")
    assert answer.prompt_eval_count == 6
    assert answer.eval_count == 7
    assert answer.eval_duration == 150_000_000


async def test_chat_as_a_stream(client: ollama.AsyncClient) -> None:
    parts = [part async for part in await client.chat(MODEL, [TURN], stream=True)]
    assert len(parts) > 3
    assert "".join(part.message.content or "" for part in parts) == f"echo: {QUESTION}"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "stop"
    assert parts[-1].eval_count == 7


async def test_generate_with_and_without_stream_and_chat_share_one_answer(
    client: ollama.AsyncClient, stub: StubOllama
) -> None:
    whole = await client.generate(MODEL, QUESTION)
    assert whole.response == f"echo: {QUESTION}"
    parts = [part async for part in await client.generate(MODEL, QUESTION, stream=True)]
    assert "".join(part.response or "" for part in parts) == whole.response
    assert parts[-1].eval_count == whole.eval_count  # the answer's own, though nothing was generated
    assert (await client.chat(MODEL, [TURN])).message.content == whole.response
    assert stub.stats["requests"]["/api/chat"] == 1


async def test_the_model_gets_the_turns_as_they_were_sent(client: ollama.AsyncClient, stub: StubOllama) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "  And two?\n"},
    ]
    await client.chat(MODEL, turns, options={"seed": 7})
    assert stub.last_bodies["/api/chat"]["messages"] == turns
    assert stub.last_bodies["/api/chat"]["options"] == {"seed": 7}
    await client.generate(MODEL, "Two?", system="Be long.")
    assert stub.last_bodies["/api/chat"]["messages"] == [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "Two?"},
    ]
    await client.chat(MODEL, [TURN])
    assert stub.last_bodies["/api/chat"]["messages"] == [TURN]


def approximately(*vectors: list[float]) -> Any:
    return [pytest.approx(each) for each in vectors]


async def test_embed(client: ollama.AsyncClient, stub: StubOllama) -> None:
    one = await client.embed("nomic-embed-text", "hello world")
    assert [list(found) for found in one.embeddings] == approximately(vector("hello world", 16))
    stub.behaviour(scale=3.0)  # the vectors are Ollama's own, not made unit length
    two = await client.embed("some-other-model", ["a", "b"], truncate=True, dimensions=8)
    assert [list(found) for found in two.embeddings] == approximately(*(vector(text, 16, 3.0) for text in ("a", "b")))
    sent = stub.last_bodies["/api/embed"]
    assert {name: sent[name] for name in ("model", "input", "truncate", "dimensions")} == {
        "model": "some-other-model",
        "input": ["a", "b"],
        "truncate": True,
        "dimensions": 8,
    }


async def test_list_and_ps(client: ollama.AsyncClient) -> None:
    assert [row.model for row in (await client.list()).models] == ["llama3.2:latest", "nomic-embed-text:latest"]
    assert [row.size_vram for row in (await client.ps()).models] == [0, 0]


async def test_a_request_without_a_question_loads(client: ollama.AsyncClient, stub: StubOllama) -> None:
    assert (await client.chat(MODEL, [])).done_reason == "load"
    assert (await client.generate(MODEL, "")).done_reason == "load"
    requests = stub.stats["requests"]
    assert (requests["/api/chat"], requests["/api/generate"]) == (1, 1)


async def test_show(client: ollama.AsyncClient, stub: StubOllama) -> None:
    shown = await client.show("llama3.2")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.basename"] == "llama3.2"
    stub.behaviour(models=[])
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        await client.show("llama3.2")
    assert raised.value.status_code == 404


async def test_the_version_is_ollama_s(service: httpx.AsyncClient) -> None:
    assert (await service.get("/api/version")).json() == {"version": "0.0.0-stub"}


# -- The cache ---------------------------------------------------------------------------------------------------------


async def test_a_repeated_call_is_an_exact_hit_and_a_paraphrase_a_semantic_one(
    service: httpx.AsyncClient, stub: StubOllama
) -> None:
    first = await chat(service)
    assert first.headers["Cache-Status"] == "ragherd; fwd=miss; stored"
    assert first.headers["X-Worker"]
    again = await chat(service)
    assert again.headers["Cache-Status"].endswith("; detail=exact")
    assert again.headers["Age"] == "0"
    like_it = await chat(service, messages=[{"role": "user", "content": PARAPHRASE}])
    assert like_it.headers["Cache-Status"].endswith("; detail=semantic")
    assert like_it.json()["message"] == first.json()["message"]
    streamed = await chat(service, stream=True)
    assert streamed.headers["Cache-Status"].endswith("; detail=exact")
    assert streamed.headers["Content-Type"] == "application/x-ndjson"
    assert stub.stats["requests"]["/api/chat"] == 1


def conversation(answer: str, question: str) -> list[dict[str, str]]:
    before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    return [*before, {"role": "user", "content": question}]


async def test_conversations_are_exact_hits_only_where_follow_ups_are_off(serve: Service, stub: StubOllama) -> None:
    service = await serve(cache={"follow_ups": False})
    question = TURN["content"]
    assert "fwd=miss" in (await chat(service, messages=conversation("Hi", question))).headers["Cache-Status"]
    assert "exact" in (await chat(service, messages=conversation("Hi", question))).headers["Cache-Status"]
    paraphrased = await chat(service, messages=conversation("Hi", PARAPHRASE))
    assert "fwd=miss" in paraphrased.headers["Cache-Status"]
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_a_paraphrase_is_a_hit_after_the_same_conversation_only(
    service: httpx.AsyncClient, stub: StubOllama
) -> None:
    assert "fwd=miss" in (await chat(service, messages=conversation("Hi", TURN["content"]))).headers["Cache-Status"]
    same = await chat(service, messages=conversation("Hi", PARAPHRASE))
    assert "detail=semantic" in same.headers["Cache-Status"]
    other = await chat(service, messages=conversation("Good evening", PARAPHRASE))
    assert "fwd=miss" in other.headers["Cache-Status"]
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_long_prompts_are_not_compared_by_meaning(service: httpx.AsyncClient) -> None:
    material = "word " * 120
    for question in ("Who wrote it?", "Who read it?"):
        answered = await chat(service, messages=[{"role": "user", "content": material + question}])
        assert "fwd=miss" in answered.headers["Cache-Status"]
        assert answered.json()["message"]["content"].endswith(question)


async def test_what_changes_the_answer_keeps_answers_apart(service: httpx.AsyncClient, stub: StubOllama) -> None:
    await ask(service, QUESTION)
    system = {"role": "system", "content": "Be brief."}
    for changes in ({}, {"options": {"seed": 1}}, {"messages": [system, TURN]}, {"model": "nomic-embed-text"}):
        assert "fwd=miss" in (await chat(service, **changes)).headers["Cache-Status"]
    assert stub.stats["requests"]["/api/chat"] == 5


async def test_cache_control_is_honoured(service: httpx.AsyncClient, stub: StubOllama) -> None:
    absent = await chat(service, headers={"Cache-Control": "only-if-cached"})
    assert absent.status_code == 504
    assert "no cached answer" in absent.json()["error"]
    kept_out = await chat(service, headers={"Cache-Control": "no-store"})
    assert kept_out.headers["Cache-Status"] == "ragherd; fwd=request"
    assert "stored" in (await chat(service)).headers["Cache-Status"]
    afresh = await chat(service, headers={"Cache-Control": "no-cache"})
    assert afresh.headers["Cache-Status"] == "ragherd; fwd=request; stored"
    assert stub.stats["requests"]["/api/chat"] == 3


async def test_an_answer_cut_by_its_length_says_so_from_the_cache_too(service: httpx.AsyncClient) -> None:
    for _ in range(2):
        cut = await chat(service, options={"num_predict": 7})
    assert "exact" in cut.headers["Cache-Status"]
    assert cut.json()["done_reason"] == "length"  # the stub's seven tokens


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/api/chat", {"model": None, "messages": [TURN]}, "model: is required"),
        ("/api/chat", {"model": MODEL, "messages": [TURN], "options": {"num_ctx": 1_000_000}}, "OLLAMA_MAX_NUM_CTX"),
        ("/api/embed", {"model": MODEL, "input": "Hi", "options": {"num_gpu": 1}}, "num_gpu"),
        ("/api/show", {"model": ""}, "model"),
    ],
)
async def test_a_refusal_names_the_field(
    service: httpx.AsyncClient, stub: StubOllama, path: str, body: dict[str, Any], named: str
) -> None:
    refused = await service.post(path, json=body)
    assert refused.status_code == 400
    assert list(refused.json()) == ["error"]
    assert named in refused.json()["error"]
    assert not {"/api/chat", "/api/generate"} & set(stub.stats["requests"])


async def test_the_pinned_context_may_be_named(serve: Service, stub: StubOllama) -> None:
    service = await serve(ollama={"ollama_num_ctx": 4096})
    assert (await chat(service, options={"num_ctx": 4096})).status_code == 200
    assert (await chat(service, options={"num_ctx": 2048})).status_code == 400
    assert stub.last_bodies["/api/chat"]["options"] == {"num_ctx": 4096}


async def test_errors_have_ollama_s_form_and_the_status_of_post_query(
    service: httpx.AsyncClient, client: ollama.AsyncClient, stub: StubOllama
) -> None:
    stub.behaviour(models=[])
    with pytest.raises(ollama.ResponseError, match="not found") as missing:
        await client.chat(MODEL, [TURN])
    assert missing.value.status_code == 404
    stub.behaviour("status", status=503, retry_after="7")
    busy = await chat(service)
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "7")
    assert "busy" not in busy.json()
    stub.behaviour("status", status=400, message='"x" does not support chat')
    assert (await chat(service)).status_code == 400
    stub.behaviour("hang")
    assert (await chat(service, headers={"X-Request-Timeout": "0.1"})).status_code == 504
    late = {"X-Request-Timeout": "0.1"}
    embedding = await service.post("/api/embed", json={"model": MODEL, "input": "a"}, headers=late)
    assert embedding.status_code == 504
    assert (await service.post("/api/chat", content=b"{")).json()["error"].startswith("invalid JSON")
    for path in ("/api/pull", "/api/blobs/sha256:1"):
        assert list((await service.post(path, json={})).json()) == ["error"]


async def test_an_error_in_mid_stream_is_the_last_line(service: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("error_line", message="out of memory")
    streamed = await chat(service, stream=True)
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.status_code == 200
    assert lines[0]["message"]["content"] == "echo:"
    assert "out of memory" in lines[-1]["error"]


async def test_an_open_breaker_is_503_for_chat_and_embed(serve: Service, stub: StubOllama) -> None:
    service = await serve(breaker={"failure_threshold": 1})
    stub.behaviour("status", status=500)
    await chat(service)
    rejected = await chat(service)
    assert rejected.status_code == 503
    assert int(rejected.headers["Retry-After"]) > 0
    assert "breaker" in rejected.json()["error"]
    body = {"model": "nomic-embed-text", "input": "a"}
    await service.post("/api/embed", json=body)
    assert "ollama-embed" in (await service.post("/api/embed", json=body)).json()["error"]


async def test_keys_are_those_of_post_query(serve: Service) -> None:
    service = await serve(access={"api_keys": "acme=secret"})
    for method, path in (("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version")):
        refused = await service.request(method, path)
        assert refused.status_code == 401
        assert list(refused.json()) == ["error"]
    assert (await chat(service)).status_code == 401
    assert (await chat(service, messages=[])).status_code == 401
    assert (await chat(service, headers={"Authorization": "Bearer secret"})).status_code == 200


async def test_a_model_on_several_backends_is_listed_once(serve: Service, stub: StubOllama) -> None:
    service = await serve(
        ollama={"ollama_base_url": f"{stub.base_url},{stub.base_url.replace('127.0.0.1', 'localhost')}"}
    )
    rows = (await service.get("/api/tags")).json()["models"]
    assert [row["name"] for row in rows] == ["llama3.2:latest", "nomic-embed-text:latest"]
    assert stub.stats["requests"]["/api/tags"] >= 2
    await stub.refuse()
    down = await service.get("/api/tags")
    assert down.status_code == 502
    assert list(down.json()) == ["error"]
