"""Nulls, and numbers with and without a fraction, are accepted and refused as the schema says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.service import Service

CHAT = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "Who?"}]}
GENERATE = {"model": "llama3.2", "stream": False, "prompt": "Who?"}
EMBED = {"model": "nomic-embed-text", "input": "Who?"}
BODIES: dict[str, dict[str, Any]] = {
    "/query": {"question": "Who?"},
    "/api/semantic-cache/explain": {"question": "Who?"},
    "/api/chat": CHAT,
    "/api/generate": GENERATE,
    "/api/embed": EMBED,
    "/v1/chat/completions": CHAT,
    "/v1/embeddings": EMBED,
}


def changed(path: str, where: str, value: Any) -> dict[str, Any]:
    """The body of `path` with `a` or `a.b` set."""
    outer, _, inner = where.partition(".")
    return {**BODIES[path], outer: {inner: value} if inner else value}


INTEGERS = [
    ("/query", "top_k"),
    ("/query", "options.seed"),
    ("/query", "options.num_predict"),
    ("/api/semantic-cache/explain", "top_k"),
    ("/api/chat", "options.seed"),
    ("/api/generate", "options.top_k"),
    ("/api/embed", "dimensions"),
    ("/v1/chat/completions", "max_tokens"),
    ("/v1/chat/completions", "seed"),
    ("/v1/embeddings", "dimensions"),
]


@pytest.mark.parametrize(("path", "where"), INTEGERS)
async def test_an_integer_may_be_written_2_0_and_not_0_5(serve: Service, path: str, where: str) -> None:
    client = await serve()
    assert (await client.post(path, json=changed(path, where, 2.0))).status_code == 200
    for wrong in (0.5, True, "2", [2], 2.5e300):
        refused = await client.post(path, json=changed(path, where, wrong))
        assert refused.status_code in {400, 422}, wrong


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/query", "top_k"),
        ("/query", "question"),
        ("/query", "options"),
        ("/query", "history"),
        ("/query", "stream"),
        ("/query", "documents"),
        ("/api/semantic-cache/explain", "top_k"),
        ("/api/chat", "model"),
        ("/v1/chat/completions", "messages"),
        ("/v1/embeddings", "input"),
    ],
)
async def test_a_null_is_refused_where_the_schema_has_none(serve: Service, path: str, where: str) -> None:
    assert (await (await serve()).post(path, json=changed(path, where, None))).status_code in {400, 422}


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/query", "model"),
        ("/query", "options.seed"),
        ("/api/chat", "options"),
        ("/api/chat", "think"),
        ("/api/chat", "messages"),
        ("/api/chat", "unknown_to_us"),
        ("/api/generate", "system"),
        ("/api/embed", "truncate"),
        ("/v1/chat/completions", "n"),
        ("/v1/chat/completions", "stop"),
        ("/v1/embeddings", "encoding_format"),
    ],
)
async def test_a_null_leaves_a_field_out_where_the_schema_has_it(serve: Service, path: str, where: str) -> None:
    client = await serve()
    assert (await client.post(path, json=changed(path, where, None))).status_code == 200
    schema = (await client.get("/openapi.json")).json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    outer, _, inner = where.partition(".")
    body = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]] if "$ref" in body else body
    if inner:
        body = schema["components"]["schemas"]["Options"]
    elif body["additionalProperties"] is True and outer not in body["properties"]:
        return  # any field goes to Ollama as it came
    taken = body["properties"].get(inner or outer) or {"anyOf": [{"type": "null"}], "extra": body}
    assert {"type": "null"} in taken["anyOf"]
    if "extra" in taken:
        assert body["additionalProperties"] is True or None in body["additionalProperties"]["enum"]


async def test_a_time_is_no_number(serve: Service) -> None:
    client = await serve()
    for since, status in (("0.5", 422), ("1", 422), ("", 422), ("null", 422), ("2026-11-23T13:00:00Z", 200)):
        answer = await client.get("/api/circuit-breaker/history", params={"since": since})
        assert answer.status_code == status, since
