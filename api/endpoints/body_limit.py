"""Pure ASGI middleware: a body over the limit is refused, by its declared length or while it arrives.

FastAPI's own `max_body_size` answers in plain text; here it is a problem document like every other error.
"""

from __future__ import annotations

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.error_responses import problem
from api.errors import PayloadTooLarge


class BodyLimit:
    """`limit` in bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._detail = f"The body is larger than {limit} bytes."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            error = PayloadTooLarge(self._detail)
            await problem(error, path=scope["path"], request_id=scope["state"]["request_id"])(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(PayloadTooLarge.status, self._detail)
            return message

        await self._app(scope, counted, send)
