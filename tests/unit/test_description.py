"""The OpenAPI description matches what the API accepts and sends."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel

from api.app import create_app
from api.endpoints import ollama_wire, openai_wire
from api.endpoints.description import Problem
from api.endpoints.problems import PROBLEM_JSON, problem_document
from api.endpoints.query import QueryIn
from api.endpoints.semantic_cache import WarmUpIn
from api.endpoints.streaming import SourceOut
from api.errors import NotFound
from api.settings import AccessSettings, Settings
from api.values import Source

BODIES: dict[str, type[BaseModel]] = {
    "/query": QueryIn,
    "/api/semantic-cache/warm": WarmUpIn,
    "/api/chat": ollama_wire.ChatBody,
    "/api/generate": ollama_wire.GenerateBody,
    "/api/embed": ollama_wire.EmbedBody,
    "/api/show": ollama_wire.ShowBody,
    "/v1/chat/completions": openai_wire.ChatCompletionBody,
    "/v1/embeddings": openai_wire.EmbeddingsBody,
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def test_every_endpoint_describes_its_errors_as_problem_documents(described: dict[str, Any]) -> None:
    for path, operations in described["paths"].items():
        for operation in operations.values():
            dropin = ollama_wire.owns_path(path) or openai_wire.owns_path(path)
            content = operation["responses"]["default"]["content"]
            assert list(content) == ["application/json" if dropin else PROBLEM_JSON], path
            assert "422" not in operation["responses"], path  # FastAPI's own form, which is never sent


def test_responses_match_their_description() -> None:
    assert set(SourceOut.model_fields) == {field.name for field in fields(Source)}
    document = problem_document(NotFound("There is none."), path="/documents/x", request_id="1")
    assert set(Problem.model_fields) == set(document)


def test_generated_clients_keep_the_names_of_their_functions(described: dict[str, Any]) -> None:
    for name in ("circuit-breaker", "connection-pool", "bulkhead", "semantic-cache"):
        path = f"/api/{name}/metrics"
        named = "pool_metrics" if name == "connection-pool" else "metrics"
        expected = f"{named}_api_{name.replace('-', '_')}_metrics_get"
        assert described["paths"][path]["get"]["operationId"] == expected


def test_the_docs_page_accepts_a_key(described: dict[str, Any]) -> None:
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.slow
def test_an_endpoint_needs_a_key_where_its_role_has_keys(described: dict[str, Any]) -> None:
    assert {str(operation["security"]) for path in described["paths"].values() for operation in path.values()} == {"[]"}
    paths = create_app(Settings(access=AccessSettings(api_keys="acme=a-key", admin_keys="root-key"))).openapi()["paths"]
    needs_key = {
        f"{method} {path}"
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation["security"] == [{"key": []}]
    }
    assert {"post /query", "post /api/chat", "get /v1/models", "post /documents", "get /documents"} <= needs_key
    assert not {"get /health", "get /metrics", "get /api/workers"} & needs_key
    users = create_app(Settings(access=AccessSettings(api_keys="acme=a-key"))).openapi()["paths"]
    assert (users["/query"]["post"]["security"], users["/documents"]["post"]["security"]) == ([{"key": []}], [])


@pytest.mark.parametrize("path", BODIES)
def test_the_examples_of_the_docs_page_are_accepted(described: dict[str, Any], path: str) -> None:
    body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = body["schema"]
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    BODIES[path].model_validate(body.get("example") or schema["example"])


def test_every_reference_resolves(described: dict[str, Any]) -> None:
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(described)))
    assert named <= set(described["components"]["schemas"])
    assert "$defs" not in json.dumps(described)
