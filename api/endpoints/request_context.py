"""Pure ASGI middleware: every response says which request and which worker, and every log line which request."""

from __future__ import annotations

import re
import uuid
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.error_responses import problem
from api.errors import InternalError

SANE: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestContext:
    """`X-Request-ID` (the caller's if it is sane) and `X-Worker`. Also the last resort for errors nobody handled."""

    def __init__(self, app: ASGIApp, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._log = structlog.get_logger("ragherd")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Worker"] = self._worker
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, labelled)
            except Exception:  # nobody handled it: the client still gets a problem document, the log the traceback
                self._log.exception("unhandled_error", path=scope["path"])
                if started:
                    raise
                await problem(InternalError(), path=scope["path"], request_id=request_id)(scope, receive, labelled)
