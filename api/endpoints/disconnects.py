"""A client that leaves ends the work that was done for it: the framework does not see to that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import Receive

from api.background import let_go
from api.cancel_scope import CancelScope

CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's word for a client that left before its response."""


class ClientLeft(HTTPException):
    """Nobody is there to have the answer. An `HTTPException`: FastAPI turns others that a body raises into a 400."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "The client left before its response.")


@asynccontextmanager
async def until_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client leaves, until it has ended. Raises `ClientLeft` then.

    The request's body must have been read: what `receive` gives after it is dropped. The end of the response must be
    sent after the block, for the server announces it in the same way as a client that leaves.
    """
    with CancelScope() as scope:
        watch = asyncio.create_task(_watch(receive, scope))
        let_go(watch)
        try:
            yield
        finally:
            watch.cancel()
    if scope.cancelled:
        raise ClientLeft


async def _watch(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
