"""What happens to a question before FastAPI sees it: its key is checked, then its body is read as JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.endpoints.worker_state import worker_state


class QueryRoute(APIRoute):
    """Who has no key learns nothing of the body that he sent, not even that it is malformed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler behind the check."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            worker_state(request).access.require_user(request)
            return await handler(_JsonRequest(request.scope, request.receive))

        return checked


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Raises `JSONDecodeError` for whatever is no JSON: the standard library has other errors for what is not
        UTF-8, nested too deeply, or a number of too many digits, and FastAPI takes those for a 400.
        """
        return orjson.loads(await self.body())
