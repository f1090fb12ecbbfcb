"""What the server says of itself and of its models: `/`, version, tags, ps, show.

`POST /api/embed`, and `POST /api/embeddings`, its elder.
"""

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
from api.ports.models import Embedder
from api.values import NO_TENANT, Vector

VERSION: Final = "0.0.0-ragherd-standin"
FOR_EVER: Final = "2318-01-01T00:00:00Z"
"""When a model that is never unloaded expires: Ollama, too, names a year about 290 years ahead."""


async def root(request: Request) -> PlainTextResponse:
    """Begins with the words by which clients know Ollama."""
    return PlainTextResponse(f"Ollama is running\n({LABEL})\n")


async def version(request: Request) -> JSONResponse:
    """Not a version of Ollama's, and says so."""
    return JSONResponse({"version": VERSION})


async def tags(request: Request) -> JSONResponse:
    """The models there are."""
    return JSONResponse({"models": [_listed(model) for model in state_of(request).catalog.models]})


async def ps(request: Request) -> JSONResponse:
    """The models in memory: all of them, always."""
    models = [
        {**_identified(model), "expires_at": FOR_EVER, "size_vram": 0, "context_length": _context_length(model)}
        for model in state_of(request).catalog.models
    ]
    return JSONResponse({"models": models})


async def show(request: Request) -> JSONResponse:
    """One model in detail."""
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


def _identified(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def _listed(model: Model) -> dict[str, Any]:
    return {**_identified(model), "modified_at": model.modified_at}


def _context_length(model: Model) -> int:
    length: int = model.info[f"{model.details['family']}.context_length"]
    return length


async def embed(request: Request) -> JSONResponse:
    """Unit vectors of one text or of many, in order. Text past 256 tokens is cut off."""
    started = time.perf_counter_ns()
    state = state_of(request)
    body = await read_body(request, EmbedBody)
    state.catalog.find_able(body.model, "embedding", "embeddings")
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
    """The vector of one text; none for an empty one, as with Ollama."""
    state = state_of(request)
    body = await read_body(request, EmbeddingsBody)
    state.catalog.find_able(body.model, "embedding", "embeddings")
    vectors = await _embed(state.embedder, [body.prompt] if body.prompt else [])
    return JSONResponse({"embedding": _numbers(vectors[0]) if vectors else []})


async def _embed(embedder: Embedder, texts: list[str]) -> list[Vector]:
    try:
        return [embedding.vector for embedding in await embedder.embed(texts, tenant=NO_TENANT)]
    except EmbeddingUnavailable as error:
        raise OllamaFault(500, str(error)) from error


def _numbers(vector: Vector, dimensions: int = 0) -> list[float]:
    """The vector's numbers; with `dimensions` its first ones, again of unit length."""
    numbers = np.frombuffer(vector, dtype="<f4")
    if 0 < dimensions < len(numbers):
        numbers = numbers[:dimensions] / np.linalg.norm(numbers[:dimensions])
    return [float(number) for number in numbers]
