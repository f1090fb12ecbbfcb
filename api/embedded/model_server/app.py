"""The ASGI application, its server, and the endpoints for embeddings and descriptions of the server and its models.

The server binds the address first, then loads the models, and only then accepts connections.
"""

from __future__ import annotations

import signal
import socket
import time
from typing import Any, Final

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from api.embedded.model_server import generation as texts
from api.embedded.model_server.bodies import (
    EmbeddingsInput,
    EmbedInput,
    OllamaFault,
    ShowInput,
    read_body,
    render_fault,
)
from api.embedded.model_server.catalog import LABEL, CatalogModel
from api.embedded.model_server.engine import ServerState, open_models, state_of
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
    body = await read_body(request, ShowInput)
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


def _common_fields(model: CatalogModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def _list_item(model: CatalogModel) -> dict[str, Any]:
    return {**_common_fields(model), "modified_at": model.modified_at}


def _context_length(model: CatalogModel) -> int:
    length: int = model.info[f"{model.details['family']}.context_length"]
    return length


async def embed(request: Request) -> JSONResponse:
    """Returns unit vectors of one or many texts, in order. Text after 256 tokens is cut off."""
    started = time.perf_counter_ns()
    state = state_of(request)
    body = await read_body(request, EmbedInput)
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
    body = await read_body(request, EmbeddingsInput)
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


def create_app(state: ServerState) -> Starlette:
    """Returns the application with the supported routes of Ollama's native API."""
    routes = [
        Route("/", root),
        Route("/api/version", version),
        Route("/api/tags", tags),
        Route("/api/ps", ps),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/generate", texts.generate, methods=["POST"]),
        Route("/api/chat", texts.chat, methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={OllamaFault: render_fault, ClientDisconnect: _client_disconnected, 404: _not_found},
    )
    app.state.server = state
    return app


async def _client_disconnected(request: Request, error: Exception) -> Response:
    """Reaches nobody. Without this handler the log would have a traceback."""
    return Response(status_code=499)


async def _not_found(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse("404 page not found", 404)


GRACE_SECONDS: Final = 2
"""Time for answers in progress when the server stops."""

KEEP_ALIVE_SECONDS: Final = 24 * 3600
"""Ollama closes no idle connections, so pools can keep some open."""


async def serve(host: str, port: int, threads: int, embed_model_path: str | None) -> None:
    """Serves until SIGTERM or SIGINT. Raises `OSError` for an address in use, and `SettingsError` without models."""
    with _bound(host, port) as listener:
        async with open_models(threads, embed_model_path) as state:
            config = uvicorn.Config(
                create_app(state),
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
            server = _AnnouncingServer(config)
            server.stop_on_signals()
            await server.serve(sockets=[listener])


def _bound(host: str, port: int) -> socket.socket:
    """Binds without listening, so that clients are refused, and do not wait, until the models are loaded."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


class _AnnouncingServer(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"ready on http://{shown}:{port} ({LABEL})", flush=True)

    def stop_on_signals(self) -> None:
        """Prevents uvicorn from raising the signal again after the stop, which would end the process before the models
        are closed.
        """

        def stop(*_: Any) -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
