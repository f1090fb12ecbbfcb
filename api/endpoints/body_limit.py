"""Pure ASGI middleware: a body that is too large or too slow is refused, by its declared length or while it arrives.

FastAPI's own `max_body_size` answers in plain text; here it is a problem document like every other error.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.endpoints.arriving_body import ArrivingBody, too_large
from api.endpoints.error_responses import problem
from api.errors import PayloadTooLarge

FILE_PATH: Final = "/documents"
FORM_BYTES: Final = 64 * 1024
"""What a form may hold beside its file."""


class BodyLimit:
    """`limit` in bytes; `file_limit` for a form with a file, where files are taken; `timeout`: see `ArrivingBody`."""

    def __init__(self, app: ASGIApp, limit: int, file_limit: int, timeout: float) -> None:
        self._app = app
        self._limit = limit
        self._file_limit = file_limit
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit, length = self._limit_of(scope, headers), headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            error = PayloadTooLarge(too_large(limit))
            await problem(error, path=scope["path"], request_id=scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, ArrivingBody(receive, limit, self._timeout), send)

    def _limit_of(self, scope: Scope, headers: Headers) -> int:
        is_file = scope["path"] == FILE_PATH and headers.get("content-type", "").lower().startswith("multipart/")
        return self._file_limit if is_file else self._limit
