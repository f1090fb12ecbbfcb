"""The ASGI application over models that are loaded.

Listening: the address is taken first, the models are loaded, and only then are connections accepted.
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


GRACE_SECONDS: Final = 2
"""What answers under way are given when the server is told to stop."""

KEEP_ALIVE_SECONDS: Final = 24 * 3600
"""Ollama closes no idle connection: a pool that keeps some open would have to open them anew again and again."""


async def serve(host: str, port: int, threads: int, embed_model_path: str | None) -> None:
    """Serves until SIGTERM or SIGINT. Raises `OSError` for an address in use, `SettingsError` without models."""
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
    """Bound but not listening: until the models are loaded a client is refused rather than kept waiting."""
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
        """uvicorn raises the signal anew once it has stopped: by default that would end the process before the
        models are closed."""

        def stop(*_: Any) -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
