"""A client that leaves ends the work that was done for it: the framework does not see to that.

The body of a request while it arrives: bounded in bytes and in time.

What it raises are starlette's own `HTTPException`s: FastAPI lets those through, and turns any other exception that
comes while it reads a body into a 400.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, NoReturn

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from api.cancellation import CancelScope, let_go
from api.errors import CLIENT_CLOSED_REQUEST


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


MINIMUM_RATE: Final = 240
"""Bytes per second that a client must send on average. A modem of 1995 sends ten times as many."""
LAST_LOOK: Final = 0.1
"""Seconds after the deadline in which the event loop reads what came while it was busy."""


class ArrivingBody:
    """Stands in for `receive`. Raises `HTTPException` 413 and 408, and `ClientLeft`, until the body is complete.

    `limit` in bytes. `timeout`: seconds within which `timeout * MINIMUM_RATE` further bytes must come. Only the time
    counts in which the application waits: it may read as slowly as it likes.
    """

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout = timeout
        self._received = 0
        self._complete = False
        self._waited = 0.0
        self._progress = 0

    async def __call__(self) -> Message:
        """An ASGI message. After the body it is whatever the server says: that the client has left."""
        if self._complete:
            return await self._receive()
        message = await self._next()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        size = len(message.get("body", b""))
        self._received += size
        if self._received > self._limit:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self._limit))
        self._progress += size
        if self._progress >= MINIMUM_RATE * self._timeout:
            self._waited, self._progress = 0.0, 0
        self._complete = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = self._timeout - self._waited
        if left <= 0:
            self._give_up()
        try:
            for seconds in (left, LAST_LOOK):
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await self._receive()
        finally:
            self._waited += loop.time() - began
        return self._give_up()

    def _give_up(self) -> NoReturn:
        detail = f"The body came too slowly: fewer than {MINIMUM_RATE} bytes a second for {self._timeout:g} s."
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail)


def too_large(limit: int) -> str:
    """What the client is told."""
    return f"The body is larger than {limit} bytes."
