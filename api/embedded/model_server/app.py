"""The ASGI application over models that are loaded."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.embedded.model_server import description_endpoints as descriptions
from api.embedded.model_server import embedding_endpoints as vectors
from api.embedded.model_server import generation_endpoints as texts
from api.embedded.model_server.faults import OllamaFault, render_fault
from api.embedded.model_server.state import ServerState


def create_app(state: ServerState) -> Starlette:
    """The routes of Ollama's native API, those that this server has."""
    routes = [
        Route("/", descriptions.root),
        Route("/api/version", descriptions.version),
        Route("/api/tags", descriptions.tags),
        Route("/api/ps", descriptions.ps),
        Route("/api/show", descriptions.show, methods=["POST"]),
        Route("/api/generate", texts.generate, methods=["POST"]),
        Route("/api/chat", texts.chat, methods=["POST"]),
        Route("/api/embed", vectors.embed, methods=["POST"]),
        Route("/api/embeddings", vectors.embeddings, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes, exception_handlers={OllamaFault: render_fault, ClientDisconnect: _client_left, 404: _no_page}
    )
    app.state.server = state
    return app


async def _client_left(request: Request, error: Exception) -> Response:
    """Nobody is there to read it; without a handler the log would have a traceback."""
    return Response(status_code=499)


async def _no_page(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse("404 page not found", 404)
