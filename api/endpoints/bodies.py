"""A client that leaves ends the work that was done for it: the framework does not do that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.types import Receive

from api.cancellation import CancelScope, log_failure
from api.errors import CLIENT_CLOSED_REQUEST


class ClientDisconnected(HTTPException):
    """The client is gone. An `HTTPException`, because FastAPI turns other exceptions of a body into a 400."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "The client disconnected before its response.")


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client disconnects, then raises `ClientDisconnected`.

    Read the request's body before the block: messages that `receive` returns afterwards are dropped. Send the end of
    the response after the block, because the server reports it in the same way as a disconnect.
    """
    with CancelScope() as scope:
        watch = asyncio.create_task(_watch(receive, scope))
        log_failure(watch)
        try:
            yield
        finally:
            watch.cancel()
    if scope.cancelled:
        raise ClientDisconnected


async def _watch(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
