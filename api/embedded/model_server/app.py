"""The ASGI application and its server.

The server binds the address first, then loads the models, and only then accepts connections.
"""

from __future__ import annotations

import signal
import socket
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.embedded.model_server import endpoints as descriptions
from api.embedded.model_server import endpoints as vectors
from api.embedded.model_server import generation as texts
from api.embedded.model_server.bodies import OllamaFault, render_fault
from api.embedded.model_server.catalog import LABEL
from api.embedded.model_server.engine import ServerState, open_models


def create_app(state: ServerState) -> Starlette:
    """Returns the application with the supported routes of Ollama's native API."""
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
