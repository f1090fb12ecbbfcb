"""The application, told to every client when its worker leaves: responses then carry `Connection: close`.

A client, or a load balancer, that reuses a connection would else send its next request to a worker that is closing
it. uvicorn closes the connection after a response with this header.
"""

from __future__ import annotations

from typing import Any

CLOSE = (b"connection", b"close")


class ClosingApp:
    """Passes everything on. `closing` is set once, when the worker begins to leave."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.closing = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Any) -> None:
            if self.closing and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            await send(message)

        await self._app(scope, receive, told)
