"""Requests that Ragherd does not understand in every field go to Ollama as they came, and come back as Ollama answers.

They pass the cache, the breaker and the failover. Only the same request finds the answer again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from api.endpoints.access_log import AccessLog
from api.ollama.models import OllamaCatalog
from api.ollama.pool import PoolLimits, open_pool
from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service
from tests.support.waiting import wait_until_async

MODEL = "llama3.2"
TURN = {"role": "user", "content": "What is the weather in Paris?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

CHAT: Mapping[str, Any] = {"model": MODEL, "messages": [TURN]}
PROMPT: Mapping[str, Any] = {"model": MODEL, "prompt": "Say hi."}

REQUESTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "tools": ("/api/chat", {**CHAT, "tools": [TOOL]}),
    "a tool's result": (
        "/api/chat",
        {
            "model": MODEL,
            "messages": [
                TURN,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
                },
                {"role": "tool", "tool_name": "weather", "content": "12 degrees"},
            ],
            "tools": [TOOL],
        },
    ),
    "a schema": ("/api/chat", {**CHAT, "format": SCHEMA}),
    "json": ("/api/generate", {**PROMPT, "format": "json"}),
    "an image": ("/api/chat", {"model": MODEL, "messages": [{**TURN, "images": [IMAGE]}]}),
    "logprobs": ("/api/chat", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "raw": ("/api/generate", {**PROMPT, "raw": True}),
    "a template": ("/api/generate", {**PROMPT, "template": "{{ .Prompt }}"}),
    "a suffix": ("/api/generate", {**PROMPT, "suffix": "end"}),
    "a context": ("/api/generate", {**PROMPT, "context": [1, 2]}),
    "an option of llama.cpp": ("/api/chat", {**CHAT, "options": {"mirostat": 1, "num_predict": -1}}),
    "an unknown field": ("/api/chat", {**CHAT, "brand_new": {"yes": 1}}),
    "a turn of the assistant at the end": (
        "/api/chat",
        {"model": MODEL, "messages": [TURN, {"role": "assistant", "content": "It is"}]},
    ),
    "openai tools": ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "auto"}),
    "openai schema": (
        "/v1/chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    ),
    "openai image": (
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
                    ],
                }
            ],
        },
    ),
    "openai completions": ("/v1/completions", dict(PROMPT)),
    "openai responses": ("/v1/responses", {"model": MODEL, "input": "Say hi."}),
    "anthropic messages": ("/v1/messages", {**CHAT, "max_tokens": 64}),
    "anthropic tools": (
        "/v1/messages",
        {**CHAT, "max_tokens": 64, "tools": [{"name": "weather", "input_schema": {"type": "object"}}]},
    ),
}


@pytest.fixture
async def service(serve: Service) -> httpx.AsyncClient:
    return await serve()


def steady(response: httpx.Response) -> Any:
    """The body, without Ragherd's headers."""
    return response.status_code, response.headers["content-type"].partition(";")[0], response.content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_access_log_has_the_outcome_as_of_any_other_question(
    service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    logged: list[Mapping[str, Any]] = []
    monkeypatch.setattr(AccessLog, "__call__", lambda _self, _ended, state: logged.append(dict(state)))

    for _ in range(2):
        path, fields = REQUESTS["openai tools"]
        assert (await service.post(path, json={**fields, "stream": stream})).status_code == 200

    miss, hit = logged
    assert miss["query"].model == hit["query"].model == MODEL
    assert (miss["answered"].status, hit["answered"].status) == ("miss", "hit")
    assert miss["answered"].completed.generation.backend == "ollama"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_the_answer_is_ollama_s_own(
    service: httpx.AsyncClient, stub: StubOllama, name: str, *, stream: bool
) -> None:
    path, fields = REQUESTS[name]
    body = {**fields, "stream": stream}
    async with httpx.AsyncClient(base_url=stub.base_url) as ollama:
        direct = await ollama.post(path, json=body)
    assert direct.status_code == 200, direct.text
    answer = await service.post(path, json=body)
    assert steady(answer) == steady(direct)
    sent = {name: value for name, value in stub.last_bodies[path].items() if name != "keep_alive"}
    assert sent == body, "as it came, but for the keep-alive of the fleet"
    again = await service.post(path, json=body)
    assert steady(again) == steady(direct)
    assert "hit; ttl=" in again.headers["cache-status"]


async def test_only_the_same_request_finds_the_answer(service: httpx.AsyncClient, stub: StubOllama) -> None:
    body = {**CHAT, "tools": [TOOL], "stream": False}
    await service.post("/api/chat", json=body)
    for other in (
        {**body, "tools": [{**TOOL, "function": {**TOOL["function"], "name": "clock"}}]},  # type: ignore[dict-item]
        {**body, "stream": True},
        {**body, "options": {"seed": 1}},
        {**body, "messages": [{**TURN, "content": "In Paris, what is the weather?"}]},
        {**CHAT, "stream": False},
    ):
        answer = await service.post("/api/chat", json=other)
        assert "fwd=miss" in answer.headers["cache-status"], other
    again = await service.post("/api/chat", json={**body, "keep_alive": "1h"})
    assert "hit" in again.headers["cache-status"], "keep_alive changes no answer"


async def test_a_refusal_comes_back_in_ollama_s_words(service: httpx.AsyncClient, stub: StubOllama) -> None:
    long = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 6000}], "truncate": False}
    refused = await service.post("/api/chat", json=long)
    assert (refused.status_code, refused.json()) == (400, {"error": "the input length exceeds the context length"})
    streamed = await service.post("/v1/chat/completions", json={**CHAT, "think": True, "stream": True})
    assert streamed.status_code == 400
    assert streamed.json()["error"]["message"] == '"llama3.2" does not support thinking'


async def test_a_model_that_thinks_does_so_unless_told_otherwise(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(thinks=True)
    service = await serve()
    asked = {**CHAT, "stream": False}
    answer = await service.post("/api/chat", json=asked)
    assert answer.json()["message"]["thinking"] == "Let me think."
    assert "think" not in stub.last_bodies["/api/chat"]
    again = await service.post("/api/chat", json=asked)
    assert again.json()["message"]["thinking"] == "Let me think.", "from the cache too"
    told = await service.post("/api/chat", json={**asked, "think": False})
    assert "thinking" not in told.json()["message"]
    openai = await service.post("/v1/chat/completions", json=CHAT)
    assert openai.json()["choices"][0]["message"]["reasoning"] == "Let me think."


@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), (0, "unload")])
async def test_a_request_without_a_question_loads_and_unloads(
    service: httpx.AsyncClient, stub: StubOllama, keep_alive: int | None, reason: str
) -> None:
    body = {"model": MODEL, **({} if keep_alive is None else {"keep_alive": keep_alive})}
    for _ in range(2):
        answer = await service.post("/api/generate", json=body)
        assert answer.json()["done_reason"] == reason
    assert stub.stats["requests"]["/api/generate"] == 2, "never from the cache"


async def test_an_unknown_model_is_not_loaded(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(models=["llama3.2:latest"])
    service = await serve()
    answer = await service.post("/api/generate", json={"model": "nope"})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("model 'nope' not found")


async def test_an_older_ollama_is_named(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(lacks=["/v1/messages"])
    service = await serve()
    answer = await service.post("/v1/messages", json={**CHAT, "max_tokens": 10})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "type": "not_found_error",
        "message": "This Ollama does not serve /v1/messages. It came with Ollama 0.14.0.",
    }


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_an_answer_that_breaks_off_is_an_error_and_not_kept(
    service: httpx.AsyncClient, stub: StubOllama, path: str
) -> None:
    body = {**CHAT, "tools": [TOOL], "stream": True, "max_tokens": 10, "think": None}
    stub.behaviour("no_done", path=path, times=1)
    broken = await service.post(path, json=body)
    assert "error" in broken.text.splitlines()[-1] or "error" in broken.text.splitlines()[-2]
    whole = await service.post(path, json=body)
    assert "fwd=miss" in whole.headers["cache-status"]


async def test_a_context_length_is_sent_and_bounded(serve: Service, stub: StubOllama) -> None:
    service = await serve(ollama={"ollama_max_num_ctx": 8192})
    asked = {**CHAT, "stream": False}
    answer = await service.post("/api/chat", json={**asked, "options": {"num_ctx": 8192}})
    assert answer.status_code == 200
    assert stub.last_bodies["/api/chat"]["options"]["num_ctx"] == 8192
    other = await service.post("/api/chat", json={**asked, "options": {"num_ctx": 4096}})
    assert "fwd=miss" in other.headers["cache-status"], "part of the key"
    for fields in (asked, {**asked, "tools": [TOOL]}):
        refused = await service.post("/api/chat", json={**fields, "options": {"num_ctx": 8193}})
        assert refused.status_code == 400
        assert refused.json() == {"error": "options.num_ctx: is over 8192 (OLLAMA_MAX_NUM_CTX)"}


async def test_the_pinned_context_goes_with_a_forwarded_request(serve: Service, stub: StubOllama) -> None:
    service = await serve(ollama={"ollama_num_ctx": 2048, "ollama_keep_alive": "1h"})
    await service.post("/api/chat", json={**CHAT, "tools": [TOOL], "keep_alive": "1s"})
    assert stub.last_bodies["/api/chat"]["options"] == {"num_ctx": 2048}
    assert stub.last_bodies["/api/chat"]["keep_alive"] == "1h"


async def test_a_server_that_fails_opens_the_breaker(serve: Service, stub: StubOllama) -> None:
    service = await serve(breaker={"failure_threshold": 2})
    stub.behaviour("status", status=500)
    body = {**CHAT, "tools": [TOOL], "stream": False}
    for seed in range(4):
        last = await service.post("/api/chat", json={**body, "options": {"seed": seed}})
    assert last.status_code == 503
    assert "circuit breaker" in last.json()["error"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_badly_written_call_of_a_tool_says_nothing_against_ollama(
    serve: Service, stub: StubOllama, *, stream: bool
) -> None:
    service = await serve(breaker={"failure_threshold": 2})
    message = "error parsing tool call: raw='{\"city\": '"
    stub.behaviour(*(("error_line",) if stream else ("status",)), message=message)
    body = {**CHAT, "tools": [TOOL], "stream": stream}
    for seed in range(4):
        answer = await service.post("/api/chat", json={**body, "options": {"seed": seed}})
        assert "error parsing tool call" in answer.text
    stub.behaviour()
    assert (await service.post("/api/chat", json=body)).status_code == 200


async def test_responses_are_stateless(service: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "input": "Say hi."}
    for name, value in (("store", True), ("previous_response_id", "resp_1")):
        refused = await service.post("/v1/responses", json={**body, name: value})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(f"{name}: is not supported")
    assert (await service.post("/v1/responses", json={**body, "store": False})).status_code == 200


async def test_an_anthropic_key_is_a_key(serve: Service) -> None:
    service = await serve(access={"api_keys": "acme=secret-key"})
    body = {**CHAT, "max_tokens": 10}
    refused = await service.post("/v1/messages", json=body)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    admitted = await service.post("/v1/messages", json=body, headers={"X-Api-Key": "secret-key"})
    assert admitted.status_code == 200


async def test_text_parts_are_joined_as_ollama_joins_them(service: httpx.AsyncClient, stub: StubOllama) -> None:
    parts = [{"type": "text", "text": "Name three"}, {"type": "text", "text": "colours."}]
    await service.post("/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": parts}]})
    sent = stub.last_bodies["/api/chat"]
    assert sent["messages"][-1]["content"] == "Name three\n\ncolours."
    assert (sent["options"]["temperature"], sent["options"]["top_p"]) == (1.0, 1.0)


async def test_the_events_end_as_json(service: httpx.AsyncClient) -> None:
    answer = await service.post("/v1/messages", json={**CHAT, "max_tokens": 10, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data:")]
    assert events[0]["type"] == "message_start"
    assert events[-1] == {"type": "message_stop"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"options": [None]},
        {"options": "fast"},
        {"options": {"num_ctx": "many"}},
        {"options": {"num_ctx": True}},
        {"messages": "Hi"},
        {"messages": [None, {"role": 1}, {"role": "user", "content": [None, {"text": 1}]}]},
        {"messages": {"role": "user"}},
        {"stream": "yes"},
        {"keep_alive": {}},
        {"tools": nested(400)},
        {"max_tokens": 2**70},
        {"format": 1e300},
    ],
)
@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages", "/v1/responses"]
)
async def test_no_body_breaks_the_service(service: httpx.AsyncClient, path: str, fields: dict[str, Any]) -> None:
    body = {**CHAT, "prompt": "Hi", "input": "Hi", "max_tokens": 10, "brand_new": 1, **fields}
    answer = await service.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("Stream", True), ("OPTIONS", {"num_ctx": 10**6}), ("\u017ftream", True), ("Model", "other")],
)
async def test_a_field_that_only_ollama_would_read_is_refused(
    serve: Service, stub: StubOllama, name: str, value: Any
) -> None:
    """Ollama ignores the letter case of names, so `Stream` beside `stream` would stream, and open the breaker."""
    service = await serve(breaker={"failure_threshold": 2})
    answer = await service.post("/api/chat", json={**CHAT, "tools": [TOOL], "stream": False, name: value})
    assert answer.status_code == 400
    assert answer.json()["error"] == f"{name}: write `{name.casefold()}`"
    assert "/api/chat" not in stub.stats["requests"]


async def test_a_load_and_an_unload_are_never_shared(service: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(delay=0.3)
    load, unload = {"model": MODEL}, {"model": MODEL, "keep_alive": 0}
    answers = await asyncio.gather(*(service.post("/api/chat", json=body) for body in (load, unload)))
    assert [answer.json()["done_reason"] for answer in answers] == ["load", "unload"]
    assert {answer.headers["cache-status"] for answer in answers} == {"ragherd; fwd=bypass; detail=load"}


async def test_counting_tokens_never_streams(serve: Service, stub: StubOllama) -> None:
    service = await serve(breaker={"failure_threshold": 2})
    body = {**CHAT, "stream": True}
    for _ in range(3):
        answer = await service.post("/v1/messages/count_tokens", json=body)
        assert answer.status_code == 404, "the stub has no such path, like Ollama"
    assert answer.json()["error"]["message"] == "This Ollama does not serve /v1/messages/count_tokens."


DEADLINES = {"ollama_first_token_timeout": 0.3, "ollama_inter_token_timeout": 0.3, "ollama_total_timeout": 1.5}


async def test_ollama_may_be_silent_while_it_writes_a_call_of_a_tool(serve: Service, stub: StubOllama) -> None:
    service = await serve(ollama=DEADLINES)
    stub.behaviour(delay=0.8)
    answer = await service.post("/v1/messages", json={**REQUESTS["anthropic tools"][1], "stream": True})
    assert answer.text.rstrip().endswith('data: {"type": "message_stop"}')


@pytest.mark.parametrize("fields", [{"raw": True, "stream": True}, {"raw": True, "stream": False}])
async def test_an_answer_without_end_does_not_open_the_breaker(
    serve: Service, stub: StubOllama, fields: dict[str, Any]
) -> None:
    service = await serve(ollama={**DEADLINES, "ollama_total_timeout": 0.6}, breaker={"failure_threshold": 2})
    pace, delay = (0.2, 0.0) if fields["stream"] else (0.0, 0.8)
    stub.behaviour(pace=pace, delay=delay, times=3, path="/api/generate")
    for seed in range(3):
        body = {"model": MODEL, "prompt": "word " * 20, **fields, "options": {"seed": seed}}
        answer = await service.post("/api/generate", json=body)
        assert "took longer than" in answer.text
    stub.behaviour()
    assert (await service.post("/api/generate", json=PROMPT)).status_code == 200


async def test_a_hang_without_a_stream_opens_the_breaker(serve: Service, stub: StubOllama) -> None:
    service = await serve(ollama={**DEADLINES, "ollama_total_timeout": 0.6}, breaker={"failure_threshold": 5})
    body = {**CHAT, "tools": [TOOL], "stream": False}
    assert (await service.post("/api/chat", json={**body, "options": {"seed": 1}})).status_code == 200
    stub.behaviour("hang")
    assert (await service.post("/api/chat", json=body)).status_code == 504

    async def is_open() -> bool:
        return bool((await service.get("/api/circuit-breaker/metrics")).json()["state"] == "OPEN")

    await wait_until_async(is_open)


async def test_an_answer_that_is_too_long_says_nothing_against_ollama_and_is_not_kept(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await serve(breaker={"failure_threshold": 2})
    body = {**PROMPT, "logprobs": True, "stream": False}
    monkeypatch.setattr("api.query.generate.MAX_STORED", 200)
    for _ in range(2):
        assert "fwd=miss" in (await service.post("/api/generate", json=body)).headers["cache-status"]
    monkeypatch.setattr("api.ollama.forwarded.WHOLE_LIMIT", 200)
    for stream in (False, True, False):
        answer = await service.post("/api/generate", json={**body, "stream": stream})
        assert "The answer has more than 200 bytes" in answer.text
    monkeypatch.undo()
    assert (await service.post("/api/generate", json=body)).status_code == 200


async def test_a_line_may_be_long(service: httpx.AsyncClient, stub: StubOllama) -> None:
    """The last line of /api/generate has a number for each token of the conversation."""
    body = {**PROMPT, "context": list(range(100_000_000, 100_090_000)), "stream": True}
    answer = await service.post("/api/generate", json=body)
    last = json.loads(answer.text.splitlines()[-1])
    assert last["context"][:90_000] == body["context"]


async def test_whether_a_model_thinks_is_asked_again_without_a_wait(
    stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.ollama.models.CAPABILITIES_FOR", 0.0)
    stub.behaviour(thinks=True)
    async with open_pool(stub.base_url, PoolLimits(min_size=0)) as pool:
        catalog = OllamaCatalog({"ollama": pool})
        assert await catalog.thinks(MODEL)
        stub.behaviour("refuse")
        began = asyncio.get_running_loop().time()
        assert await catalog.thinks(MODEL), "as it was, while Ollama does not answer"
        assert asyncio.get_running_loop().time() - began < 0.1


async def test_many_unknown_names_do_not_displace_a_model_that_thinks(
    stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.ollama.models.MAX_MODELS", 3)
    stub.behaviour(thinks=True, models=["llama3.2:latest"])
    async with open_pool(stub.base_url, PoolLimits(min_size=0)) as pool:
        catalog = OllamaCatalog({"ollama": pool})
        for number in range(5):
            assert not await catalog.thinks(f"unknown{number}")
        assert await catalog.thinks(MODEL)


async def test_paths_of_accounts_are_missing_in_ollama_s_form(service: httpx.AsyncClient) -> None:
    answer = await service.post("/api/me")
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_plain_answer_has_the_fields_of_ollama_s(
    service: httpx.AsyncClient, stub: StubOllama, *, stream: bool
) -> None:
    async with httpx.AsyncClient(base_url=stub.base_url) as ollama:
        direct = await ollama.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    answer = await service.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert [shape(document) for document in documents(answer)] == [shape(document) for document in documents(direct)]


def documents(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def shape(value: Any) -> Any:
    """The names of all fields, without their values."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


async def test_empty_input_is_embedded_as_ollama_does(service: httpx.AsyncClient) -> None:
    answer = await service.post("/api/embed", json={"model": "nomic-embed-text", "input": ""})
    assert answer.json()["embeddings"] == []


@pytest.mark.parametrize("field", [{"context": []}, {"context": [1, 2]}])
async def test_a_client_that_sends_a_context_gets_one_back(service: httpx.AsyncClient, field: dict[str, Any]) -> None:
    asked = {**PROMPT, "stream": False}
    assert "context" not in (await service.post("/api/generate", json=asked)).json()
    first, again = [await service.post("/api/generate", json={**asked, **field}) for _ in range(2)]
    assert first.json()["context"]
    assert again.json() == first.json()
    assert "detail=exact" in again.headers["cache-status"]
    other = await service.post("/api/generate", json={**asked, **field, "prompt": "say hi"})
    assert "fwd=miss" in other.headers["cache-status"], "a context belongs to one prompt, to the letter"


async def test_every_answer_has_a_context_if_that_is_wanted(serve: Service) -> None:
    service = await serve(ollama={"ollama_generate_context": True})
    assert (await service.post("/api/generate", json={**PROMPT, "stream": False})).json()["context"]
    chat = await service.post("/api/chat", json={**CHAT, "stream": False})
    again = await service.post("/api/chat", json={**CHAT, "stream": False, "options": {}})
    assert (chat.status_code, "hit" in again.headers["cache-status"]) == (200, True)


async def test_options_that_reload_a_model_are_bounded_and_can_be_pinned(serve: Service, stub: StubOllama) -> None:
    free = await serve(ollama={"ollama_max_num_ctx": 8192})
    body = {**CHAT, "stream": False}
    assert (await free.post("/api/chat", json={**body, "options": {"num_thread": 2}})).status_code == 200
    assert stub.last_bodies["/api/chat"]["options"] == {"num_thread": 2}
    large = await free.post("/api/chat", json={**body, "options": {"num_batch": 8193}})
    assert large.json() == {"error": "options.num_batch: is over 8192 (OLLAMA_MAX_NUM_CTX)"}
    pinned = await serve(ollama={"ollama_pin_options": True, "ollama_num_ctx": 2048})
    for fields in ({"options": {"num_gpu": 0}}, {"options": {"use_mmap": False}}, {"shift": False}):
        refused = await pinned.post("/api/chat", json={**body, **fields})
        assert refused.status_code == 400
        assert "OLLAMA_PIN_OPTIONS" in refused.json()["error"]
    assert (await pinned.post("/api/chat", json={**body, "options": {"num_ctx": 2048}})).status_code == 200


async def test_a_model_is_unloaded_on_every_backend(serve: Service, stub: StubOllama) -> None:
    async with running_stub() as other:
        service = await serve(ollama={"ollama_base_url": f"{stub.base_url},{other.base_url}"})
        unload = {"model": MODEL, "keep_alive": "0s"}
        answer = await service.post("/api/generate", json=unload)
        assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")
        assert stub.last_bodies["/api/generate"] == other.last_bodies["/api/generate"] == unload
        other.behaviour(models=["another:latest"])
        assert (await service.post("/api/chat", json=unload)).json()["done_reason"] == "unload"
        stub.behaviour(models=["another:latest"])
        assert (await service.post("/api/chat", json=unload)).status_code == 404
        await other.refuse()
        stub.behaviour()
        assert (await service.post("/api/chat", json=unload)).json()["done_reason"] == "unload"
        await stub.refuse()
        assert (await service.post("/api/chat", json=unload)).status_code == 502
