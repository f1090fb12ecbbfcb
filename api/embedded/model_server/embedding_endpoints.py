"""`POST /api/embed`, and `POST /api/embeddings`, its elder."""

from __future__ import annotations

import time

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse

from api.embedded.model_server.bodies import EmbedBody, EmbeddingsBody, read_body
from api.embedded.model_server.faults import OllamaFault
from api.embedded.model_server.state import state_of
from api.errors import EmbeddingUnavailable
from api.model import NO_TENANT, Vector
from api.ports.models import Embedder


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
