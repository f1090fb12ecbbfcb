"""OpenAI's official client works with the service after only its base URL is changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.stub_ollama import StubOllama
from tests.stub_ollama.answers import vector
from tests.support.service import Service, ask

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"  # the stub embeds words without regard to their order
TURN: Any = {"role": "user", "content": QUESTION}
MODEL = "llama3.2"


@pytest.fixture
async def service(serve: Service) -> httpx.AsyncClient:
    return await serve()


@pytest.fixture
async def client(service: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key="any", max_retries=0) as made:
        yield made


async def complete(
    service: httpx.AsyncClient, *, headers: dict[str, str] | None = None, **changes: Any
) -> httpx.Response:
    body = {"model": MODEL, "messages": [TURN], **changes}
    return await service.post("/v1/chat/completions", json=body, headers=headers)


# -- The official client -----------------------------------------------------------------------------------------------


async def test_chat_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=[TURN])
    assert answer.choices[0].message.content == f"echo: {QUESTION}"
    assert (answer.model, answer.object, answer.choices[0].finish_reason) == (MODEL, "chat.completion", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 7, 13)


async def test_chat_completions_as_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[TURN], stream=True, stream_options={"include_usage": True}
    )
    *chunks, last, usage = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == f"echo: {QUESTION}"
    assert len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * len(chunks)
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 13
    assert len({chunk.id for chunk in (*chunks, last, usage)}) == 1


async def test_a_stream_ends_with_done_and_without_usage_unless_asked(service: httpx.AsyncClient) -> None:
    streamed = await complete(service, stream=True)
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    *events, done, rest = streamed.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events)


async def test_parameters_are_translated_and_turns_go_as_they_were_sent(
    client: openai.AsyncOpenAI, stub: StubOllama
) -> None:
    parts: Any = [{"type": "text", "text": "One"}, {"type": "text", "text": "and two?"}]
    await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hello", "name": "me"},
            {"role": "assistant", "content": "Hi", "refusal": None},
            {"role": "user", "content": parts},
        ],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=50,
        seed=3,
        stop="END",
        presence_penalty=0.1,
        frequency_penalty=0.2,
        n=1,
        user="somebody",
        tools=[],
        response_format={"type": "text"},
    )
    sent = stub.last_bodies["/api/chat"]
    assert [(turn["role"], turn["content"]) for turn in sent["messages"]] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "One\n\nand two?"),
    ]
    assert sent["options"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "num_predict": 50,
        "seed": 3,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
    }


async def test_embeddings_in_both_encodings(client: openai.AsyncOpenAI, service: httpx.AsyncClient) -> None:
    found = await client.embeddings.create(model="nomic-embed-text", input=["a", "b"])  # base64, unasked
    assert [row.embedding for row in found.data] == [pytest.approx(vector(text, 16), abs=1e-6) for text in ("a", "b")]
    assert [row.index for row in found.data] == [0, 1]
    body = {"model": "nomic-embed-text", "input": "a"}
    plain = (await service.post("/v1/embeddings", json=body)).json()
    assert plain["data"][0]["embedding"] == pytest.approx(vector("a", 16))
    encoded = (await service.post("/v1/embeddings", json={**body, "encoding_format": "base64"})).json()
    assert isinstance(encoded["data"][0]["embedding"], str)


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["llama3.2:latest", "nomic-embed-text:latest"]


# -- The cache ---------------------------------------------------------------------------------------------------------


async def test_a_repeated_call_is_an_exact_hit_and_a_paraphrase_a_semantic_one(
    client: openai.AsyncOpenAI, service: httpx.AsyncClient, stub: StubOllama
) -> None:
    raw = client.chat.completions.with_raw_response
    first = await raw.create(model=MODEL, messages=[TURN])
    assert first.headers["Cache-Status"] == "ragherd; fwd=miss; stored"
    again = await raw.create(model=MODEL, messages=[TURN])
    assert again.headers["Cache-Status"].endswith("; detail=exact")
    assert again.headers["Age"] == "0"
    assert again.parse().usage == first.parse().usage
    like_it = await complete(service, messages=[{"role": "user", "content": PARAPHRASE}], stream=True)
    assert like_it.headers["Cache-Status"].endswith("; detail=semantic")
    assert stub.stats["requests"]["/api/chat"] == 1
    afresh = await raw.create(model=MODEL, messages=[TURN], extra_headers={"Cache-Control": "no-cache"})
    assert afresh.headers["Cache-Status"] == "ragherd; fwd=request; stored"
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_answers_are_shared_with_ollama_s_api_and_not_with_post_query(
    service: httpx.AsyncClient, stub: StubOllama
) -> None:
    await ask(service, QUESTION, top_k=0)
    assert "fwd=miss" in (await complete(service)).headers["Cache-Status"]
    sampled = {"temperature": 1.0, "top_p": 1.0}  # the defaults of Ollama's layer for OpenAI's API
    body = {"model": MODEL, "messages": [TURN], "stream": False, "options": sampled}
    theirs = await service.post("/api/chat", json=body)
    assert theirs.headers["Cache-Status"].endswith("; detail=exact")
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_the_figures_count_these_calls_too(service: httpx.AsyncClient) -> None:
    await complete(service)
    await complete(service)
    text = (await service.get("/metrics")).text
    assert 'route="/v1/chat/completions"' in text
    counts = (await service.get("/api/bulkhead/metrics")).json()
    assert counts["served"] == 1


# -- Errors ------------------------------------------------------------------------------------------------------------


async def test_a_refusal_names_the_parameter(client: openai.AsyncOpenAI, stub: StubOllama) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="", messages=[TURN])
    assert (raised.value.param, raised.value.type) == ("model", "invalid_request_error")
    assert not {"/api/chat", "/v1/chat/completions"} & set(stub.stats["requests"])


async def test_ollama_s_refusal_is_the_client_s_own_exception(client: openai.AsyncOpenAI, stub: StubOllama) -> None:
    stub.behaviour("status", status=400, message="no such tool")
    with pytest.raises(openai.BadRequestError, match="no such tool"):
        await client.chat.completions.create(model=MODEL, messages=[TURN], logit_bias={"50256": -100})


async def test_tokens_in_place_of_text_are_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.embeddings.create(model="nomic-embed-text", input=[[1, 2]])
    assert raised.value.param == "input.0"


async def test_errors_are_the_client_s_own_exceptions(client: openai.AsyncOpenAI, stub: StubOllama) -> None:
    stub.behaviour(models=[])
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model=MODEL, messages=[TURN])
    assert (missing.value.code, missing.value.type) == ("model_not_found", "not_found_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.post("/assistants", body={}, cast_to=object)
    assert unknown.value.code is None
    stub.behaviour("status", status=503, retry_after="7")
    with pytest.raises(openai.InternalServerError) as busy:
        await client.embeddings.create(model=MODEL, input="a")
    assert (busy.value.status_code, busy.value.response.headers["Retry-After"]) == (503, "7")
    assert busy.value.type == "server_error"
    with pytest.raises(openai.InternalServerError) as absent:
        await client.chat.completions.create(
            model=MODEL, messages=[TURN], extra_headers={"Cache-Control": "only-if-cached"}
        )
    assert (absent.value.status_code, absent.value.code) == (504, "not-cached")


async def test_an_error_in_mid_stream_is_raised_by_the_client(client: openai.AsyncOpenAI, stub: StubOllama) -> None:
    stub.behaviour("error_line", message="out of memory")
    stream = await client.chat.completions.create(model=MODEL, messages=[TURN], stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        async for _ in stream:
            pass


async def test_the_api_key_is_the_tenant_s(serve: Service) -> None:
    service = await serve(access={"api_keys": "acme=secret,other=hidden"})
    url = f"{service.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.chat.completions.create(model=MODEL, messages=[TURN])
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            await stranger.embeddings.create(model="nomic-embed-text", input="a")
    for key in ("secret", "hidden"):
        answered = await complete(service, headers={"Authorization": f"Bearer {key}"})
        assert "fwd=miss" in answered.headers["Cache-Status"]


async def test_a_body_that_is_too_large_is_413_in_this_api_s_form(serve: Service) -> None:
    service = await serve(server={"max_body_bytes": 1000})
    refused = await complete(service, user="x" * 1000)
    assert refused.status_code == 413
    assert refused.json()["error"]["type"] == "invalid_request_error"
