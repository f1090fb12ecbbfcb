"""Reads request bodies within limits of size and time, and cancels work when the client disconnects.

The errors are Starlette's `HTTPException`s. FastAPI passes those on, but turns any other exception that occurs while it
reads a body into a 400.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, NoReturn

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

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


MINIMUM_RATE: Final = 240
"""Bytes per second that a client must send on average. A modem of 1995 sent ten times as many."""
GRACE_SECONDS: Final = 0.1
"""After the deadline the event loop gets this time to read what arrived while it was busy."""


class LimitedReceive:
    """Wraps `receive`. Raises `HTTPException` 413 and 408, and `ClientDisconnected`, until the body is complete.

    `limit` is in bytes. Within `timeout` seconds at least `timeout * MINIMUM_RATE` more bytes must arrive. Only the
    time that the application waits counts, so it may read slowly.
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
        """Returns the next ASGI message. After the body, that is the server's notice that the client disconnected."""
        if self._complete:
            return await self._receive()
        message = await self._next()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
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
            for seconds in (left, GRACE_SECONDS):
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await self._receive()
        finally:
            self._waited += loop.time() - began
        return self._give_up()

    def _give_up(self) -> NoReturn:
        detail = f"The body arrived too slowly: less than {MINIMUM_RATE} bytes per second for {self._timeout:g} s."
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail)


def too_large(limit: int) -> str:
    """Returns the error text for the client."""
    return f"The body is larger than {limit} bytes."
