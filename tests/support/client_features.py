"""What the official packages of other programs do through the service. docs/clients.md lists it from here.

Each check gets the URL of the service, runs in a thread, and asserts what the package returns. Packages are imported by
their checks, because some of them take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.support.npm_clients import NPM_CLIENTS

MODEL: Final = "llama3.2"
EMBEDDER: Final = "nomic-embed-text"
QUESTION: Final = "What is the weather in Paris?"
ECHO: Final = f"echo: {QUESTION}"
TURN: Final[dict[str, Any]] = {"role": "user", "content": QUESTION}
PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Final = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS},
}
SCHEMA: Final = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def _ollama(url: str) -> Any:
    import ollama

    return ollama.Client(url)


def ollama_chat(url: str) -> None:
    assert _ollama(url).chat(MODEL, [TURN]).message.content == ECHO


def ollama_stream(url: str) -> None:
    parts = list(_ollama(url).chat(MODEL, [TURN], stream=True))
    assert "".join(part.message.content or "" for part in parts) == ECHO
    assert parts[-1].done


def ollama_tools(url: str) -> None:
    (call,) = _ollama(url).chat(MODEL, [TURN], tools=[TOOL]).message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})


def ollama_schema(url: str) -> None:
    assert _ollama(url).chat(MODEL, [TURN], format=SCHEMA).message.content == '{"answer": "echo"}'


def ollama_embeddings(url: str) -> None:
    client = _ollama(url)
    (vector,) = client.embed(EMBEDDER, "a text").embeddings
    assert [*client.embeddings(EMBEDDER, "a text").embedding] == [*vector]


def ollama_models(url: str) -> None:
    client = _ollama(url)
    assert client.list().models[0].model == "llama3.2:latest"
    assert client.ps().models
    assert client.show(MODEL).capabilities == ["completion", "tools"]


def ollama_generate(url: str) -> None:
    client = _ollama(url)
    assert client.generate(MODEL, QUESTION).response == ECHO
    assert client.generate(MODEL, QUESTION, raw=True).response == ECHO
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"


def _openai(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def openai_chat(url: str) -> None:
    answer = _openai(url).chat.completions.create(model=MODEL, messages=[TURN])
    assert answer.choices[0].message.content == ECHO


def openai_stream(url: str) -> None:
    chunks = list(_openai(url).chat.completions.create(model=MODEL, messages=[TURN], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ECHO


def openai_tools(url: str) -> None:
    answer = _openai(url).chat.completions.create(model=MODEL, messages=[TURN], tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
    assert answer.choices[0].finish_reason == "tool_calls"


def openai_schema(url: str) -> None:
    from pydantic import BaseModel

    class Reply(BaseModel):
        answer: str

    parsed = _openai(url).chat.completions.parse(model=MODEL, messages=[TURN], response_format=Reply)
    assert parsed.choices[0].message.parsed == Reply(answer="echo")


def openai_embeddings(url: str) -> None:
    (row,) = _openai(url).embeddings.create(model=EMBEDDER, input="a text").data
    assert len(row.embedding) == 16


def openai_models(url: str) -> None:
    client = _openai(url)
    assert next(iter(client.models.list())).id == "llama3.2:latest"
    assert client.models.retrieve("llama3.2:latest").id == "llama3.2:latest"


def openai_other(url: str) -> None:
    client = _openai(url)
    assert client.completions.create(model=MODEL, prompt=QUESTION).choices[0].text == ECHO
    assert client.responses.create(model=MODEL, input=QUESTION).output_text == ECHO
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        kinds = {event.type for event in stream}
    assert "response.completed" in kinds
    recording = client.audio.transcriptions.create(model=MODEL, file=("speech.wav", b"RIFF"))
    assert recording.text == "a recording of 4 bytes"


def _anthropic(url: str) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0)


def anthropic_chat(url: str) -> None:
    message = _anthropic(url).messages.create(model=MODEL, max_tokens=100, messages=[TURN])
    assert message.content[0].text == ECHO


def anthropic_stream(url: str) -> None:
    with _anthropic(url).messages.stream(model=MODEL, max_tokens=100, messages=[TURN]) as stream:
        assert "".join(stream.text_stream) == ECHO


def anthropic_tools(url: str) -> None:
    tool = {"name": "weather", "input_schema": PARAMETERS}
    message = _anthropic(url).messages.create(model=MODEL, max_tokens=100, messages=[TURN], tools=[tool])
    assert (message.content[0].name, message.content[0].input) == ("weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"


def _chat_ollama(url: str) -> Any:
    from langchain_ollama import ChatOllama

    return ChatOllama(model=MODEL, base_url=url, num_ctx=2048, validate_model_on_init=True)


def langchain_ollama_chat(url: str) -> None:
    assert _chat_ollama(url).invoke(QUESTION).content == ECHO


def langchain_ollama_stream(url: str) -> None:
    assert "".join(part.content for part in _chat_ollama(url).stream(QUESTION)) == ECHO


def langchain_ollama_tools(url: str) -> None:
    (call,) = _chat_ollama(url).bind_tools([TOOL]).invoke(QUESTION).tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})


def langchain_ollama_schema(url: str) -> None:
    structured = _chat_ollama(url).with_structured_output({"title": "Reply", **SCHEMA}, method="json_schema")
    assert structured.invoke(QUESTION) == {"answer": "echo"}


def langchain_ollama_embeddings(url: str) -> None:
    from langchain_ollama import OllamaEmbeddings

    assert len(OllamaEmbeddings(model=EMBEDDER, base_url=url).embed_query("a text")) == 16


def _chat_openai(url: str) -> Any:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=SecretStr("unused"), max_retries=0)


def langchain_openai_chat(url: str) -> None:
    assert _chat_openai(url).invoke(QUESTION).content == ECHO


def langchain_openai_stream(url: str) -> None:
    assert "".join(part.content for part in _chat_openai(url).stream(QUESTION)) == ECHO


def langchain_openai_tools(url: str) -> None:
    (call,) = _chat_openai(url).bind_tools([TOOL]).invoke(QUESTION).tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})


def langchain_openai_schema(url: str) -> None:
    structured = _chat_openai(url).with_structured_output({"title": "Reply", **SCHEMA}, method="json_schema")
    assert structured.invoke(QUESTION) == {"answer": "echo"}


def _llama_index(url: str) -> Any:
    from llama_index.llms.ollama import Ollama  # type: ignore[import-untyped]

    return Ollama(model=MODEL, base_url=url, context_window=2048)


def llama_index_chat(url: str) -> None:
    assert _llama_index(url).complete(QUESTION).text == ECHO


def llama_index_stream(url: str) -> None:
    assert list(_llama_index(url).stream_complete(QUESTION))[-1].text == ECHO


def _litellm(url: str, **fields: Any) -> Any:
    import litellm

    return litellm.completion(model=f"ollama_chat/{MODEL}", api_base=url, messages=[TURN], num_retries=0, **fields)


def litellm_chat(url: str) -> None:
    assert _litellm(url).choices[0].message.content == ECHO


def litellm_stream(url: str) -> None:
    chunks = list(_litellm(url, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ECHO


def litellm_tools(url: str) -> None:
    (call,) = _litellm(url, tools=[TOOL]).choices[0].message.tool_calls
    assert call.function.name == "weather"


Check = Callable[[str], None]


def ollama_with_key(url: str, key: str) -> None:
    import ollama

    client = ollama.Client(url, headers={"Authorization": f"Bearer {key}"})
    assert client.chat(MODEL, [TURN]).message.content == ECHO


def langchain_with_key(url: str, key: str) -> None:
    from langchain_ollama import ChatOllama

    model = ChatOllama(model=MODEL, base_url=url, client_kwargs={"headers": {"Authorization": f"Bearer {key}"}})
    assert model.invoke(QUESTION).content == ECHO


def llama_index_with_key(url: str, key: str) -> None:
    from llama_index.llms.ollama import Ollama

    model = Ollama(model=MODEL, base_url=url, headers={"Authorization": f"Bearer {key}"})
    assert model.complete(QUESTION).text == ECHO


def litellm_with_key(url: str, key: str) -> None:
    from litellm import completion

    answer = completion(f"ollama_chat/{MODEL}", [TURN], api_base=url, api_key=key, num_retries=0)
    assert answer.choices[0].message.content == ECHO


def claude_code_with_key(url: str, key: str) -> None:
    import anthropic

    client: Any = anthropic.Anthropic(base_url=url, auth_token=key, max_retries=0)
    assert client.messages.create(model=MODEL, max_tokens=100, messages=[TURN]).content[0].text == ECHO


RECIPES: Final[Mapping[str, Callable[[str, str], None]]] = {
    "ollama": ollama_with_key,
    "langchain": langchain_with_key,
    "llama-index": llama_index_with_key,
    "litellm": litellm_with_key,
    "claude code": claude_code_with_key,
}
"""The recipes of docs/clients.md that are Python, with a key."""

FEATURES: Final = ("chat", "stream", "tools", "structured output", "embeddings", "models", "other")
"""The columns of the page."""

CLIENTS: Final[Mapping[str, Mapping[str, Check]]] = {
    "ollama": {
        "chat": ollama_chat,
        "stream": ollama_stream,
        "tools": ollama_tools,
        "structured output": ollama_schema,
        "embeddings": ollama_embeddings,
        "models": ollama_models,
        "other": ollama_generate,
    },
    "openai": {
        "chat": openai_chat,
        "stream": openai_stream,
        "tools": openai_tools,
        "structured output": openai_schema,
        "embeddings": openai_embeddings,
        "models": openai_models,
        "other": openai_other,
    },
    "anthropic": {"chat": anthropic_chat, "stream": anthropic_stream, "tools": anthropic_tools},
    "langchain-ollama": {
        "chat": langchain_ollama_chat,
        "stream": langchain_ollama_stream,
        "tools": langchain_ollama_tools,
        "structured output": langchain_ollama_schema,
        "embeddings": langchain_ollama_embeddings,
    },
    "langchain-openai": {
        "chat": langchain_openai_chat,
        "stream": langchain_openai_stream,
        "tools": langchain_openai_tools,
        "structured output": langchain_openai_schema,
    },
    "llama-index-llms-ollama": {"chat": llama_index_chat, "stream": llama_index_stream},
    "litellm": {"chat": litellm_chat, "stream": litellm_stream, "tools": litellm_tools},
    **NPM_CLIENTS,
}
"""The check of each feature of each package."""
