"""The endpoints that describe the server and its models, and the embedding endpoints."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from api.embedded.model_server.bodies import EmbedBody, EmbeddingsBody, OllamaFault, ShowBody, read_body
from api.embedded.model_server.catalog import LABEL, Model
from api.embedded.model_server.engine import state_of
from api.errors import EmbeddingUnavailable
from api.ports.inference import Embedder
from api.values import NO_TENANT, Vector

VERSION: Final = "0.0.0-ragherd-standin"
NEVER_EXPIRES: Final = "2318-01-01T00:00:00Z"
"""Expiry of a model that is never unloaded. Ollama also uses a date about 290 years ahead."""


async def root(request: Request) -> PlainTextResponse:
    """Begins with the words by which clients recognize Ollama."""
    return PlainTextResponse(f"Ollama is running\n({LABEL})\n")


async def version(request: Request) -> JSONResponse:
    """Not a version of Ollama."""
    return JSONResponse({"version": VERSION})


async def tags(request: Request) -> JSONResponse:
    """Lists the models."""
    return JSONResponse({"models": [_list_item(model) for model in state_of(request).catalog.models]})


async def ps(request: Request) -> JSONResponse:
    """Lists the models in memory, which are always all."""
    models = [
        {**_common_fields(model), "expires_at": NEVER_EXPIRES, "size_vram": 0, "context_length": _context_length(model)}
        for model in state_of(request).catalog.models
    ]
    return JSONResponse({"models": models})


async def show(request: Request) -> JSONResponse:
    """Describes one model."""
    body = await read_body(request, ShowBody)
    model = state_of(request).catalog.find(body.model or body.name)
    fields = {
        "license": model.license,
        "modelfile": f"# {LABEL}\nFROM {model.name}\n",
        "parameters": "",
        "template": "{{ .System }}\n{{ .Prompt }}" if model.capability == "completion" else "",
        "details": model.details,
        "model_info": model.info,
        "capabilities": [model.capability],
        "modified_at": model.modified_at,
    }
    return JSONResponse(fields)


def _common_fields(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def _list_item(model: Model) -> dict[str, Any]:
    return {**_common_fields(model), "modified_at": model.modified_at}


def _context_length(model: Model) -> int:
    length: int = model.info[f"{model.details['family']}.context_length"]
    return length


async def embed(request: Request) -> JSONResponse:
    """Returns unit vectors of one or many texts, in order. Text after 256 tokens is cut off."""
    started = time.perf_counter_ns()
    state = state_of(request)
    body = await read_body(request, EmbedBody)
    state.catalog.find_capable(body.model, "embedding", "embeddings")
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = await _embed(state.embedder, texts)
    fields = {
        "model": body.model,
        "embeddings": [_numbers(vector, body.dimensions) for vector in vectors],
        "total_duration": time.perf_counter_ns() - started,
        "load_duration": 0,
    }
    return JSONResponse(fields)


async def embeddings(request: Request) -> JSONResponse:
    """Returns the vector of one text, or [] for an empty text, like Ollama."""
    state = state_of(request)
    body = await read_body(request, EmbeddingsBody)
    state.catalog.find_capable(body.model, "embedding", "embeddings")
    vectors = await _embed(state.embedder, [body.prompt] if body.prompt else [])
    return JSONResponse({"embedding": _numbers(vectors[0]) if vectors else []})


async def _embed(embedder: Embedder, texts: list[str]) -> list[Vector]:
    try:
        return [embedding.vector for embedding in await embedder.embed(texts, tenant=NO_TENANT)]
    except EmbeddingUnavailable as error:
        raise OllamaFault(500, str(error)) from error


def _numbers(vector: Vector, dimensions: int = 0) -> list[float]:
    """Returns the vector's numbers, or its first `dimensions` numbers normalized to unit length."""
    numbers = np.frombuffer(vector, dtype="<f4")
    if 0 < dimensions < len(numbers):
        numbers = numbers[:dimensions] / np.linalg.norm(numbers[:dimensions])
    return [float(number) for number in numbers]
