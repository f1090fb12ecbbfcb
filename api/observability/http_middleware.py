"""Times every request by the template of its route. Pure ASGI, so that it costs microseconds and streams pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from api.observability.metrics import Metrics

UNMATCHED = "unmatched"
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Others share one label: a client must not be able to make series."""

CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client left before the response ended (nginx's word for it)."""


class HttpMetrics:
    """Around all middleware that takes time: its times include theirs."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts a request; anything else passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST
        complete = False

        async def send_and_note(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        mounted_at = scope.get("root_path", "")
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        started = time.perf_counter()
        self._metrics.request_began()
        try:
            await self._app(scope, receive, send_and_note)
            status = status if complete else CLIENT_CLOSED_REQUEST
        except Exception:  # whatever it is, it becomes a 500 further out, and is counted as one
            status = 500 if status == CLIENT_CLOSED_REQUEST else status
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.request_ended(method, route_template(scope, mounted_at), status, seconds)


def route_template(scope: Scope, mounted_at: str = "") -> str:
    """The route that took the request, known once the application has run: `/documents/{id}`, or `unmatched`.

    `mounted_at` is the `root_path` before: an application mounted under a path changes it.
    """
    path = getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return path
    if "endpoint" not in scope:
        return UNMATCHED
    root: str = scope.get("root_path", "")
    if root != mounted_at:
        return f"{root}/{{path}}"
    return UNMATCHED if scope.get("path_params") else str(scope["path"])
