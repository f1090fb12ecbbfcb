"""An answer as server-sent events: `sources`, `token`s, then `done` or `error`. docs/streaming.md shows the wire.

The response begins with the answer's first words. Whatever goes wrong before is an ordinary problem document.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import orjson
from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.endpoints.disconnects import ClientLeft, until_client_leaves
from api.endpoints.error_responses import problem_document
from api.endpoints.event_wire import EventWire, Streaming
from api.endpoints.query_answer import cache_headers, document
from api.errors import InternalError, RagherdError
from api.model import Token
from api.query.answered import Answered, AnswerEvent, Opening
from api.query.cache_control import CacheControl

MEDIA_TYPE: Final = "text/event-stream"

_LINE_ENDS: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
"""No line ends to the standard, but to Python's `splitlines`, by which some clients read."""

Events = AsyncIterator[AnswerEvent]


def accepted(accept: str) -> bool:
    """Whether an `Accept` header names event streams, and not to refuse them."""
    for media_range in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        if kind == MEDIA_TYPE:
            return not any(parameter.replace(" ", "").rstrip("0.") == "q=" for parameter in parameters)
    return False


class EventStream(Response):
    """Runs the flow while it sends, so that a slow reader slows the language model."""

    def __init__(
        self,
        request: Request,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._request = request
        self._answer = answer
        self._control = control
        self._streaming = streaming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything. Raises what the flow raises before its first words, and `ClientLeft`."""
        wire = EventWire(send, self._streaming)
        try:
            async with until_client_leaves(receive), self._answer as events:
                opening = await anext(events)
                assert isinstance(opening, Opening), "the flow begins with an opening"
                self.headers.update(cache_headers(opening, self._control))
                async with wire.opened(self.status_code, self.raw_headers):
                    await wire.send(_event("sources", opening.sources))
                    await self._send_rest(wire, events)
        except ClientLeft:
            if not wire.is_open:
                raise
            return
        await wire.end()

    async def _send_rest(self, wire: EventWire, events: Events) -> None:
        try:
            async for event in events:
                if isinstance(event, Token):
                    await wire.send(_event("token", {"text": event.text}))
                elif isinstance(event, Answered):
                    await wire.send(_event("done", self._done(event)))
        except RagherdError as error:
            await wire.send(_event("error", self._problem(error)))
        except ClientLeft:
            raise
        except Exception:  # a fault of our own: the reader is told, the log gets the traceback where it is raised to
            with suppress(ClientLeft):
                await wire.send(_event("error", self._problem(InternalError())))
            raise

    def _done(self, answered: Answered) -> dict[str, Any]:
        whole = document(answered, self._request.state.request_id)
        return {name: value for name, value in whole.items() if name != "answer"}

    def _problem(self, error: RagherdError) -> dict[str, Any]:
        return problem_document(error, path=self._request.url.path, request_id=self._request.state.request_id)


def _event(name: str, data: Any) -> bytes:
    return format_sse_event(event=name, data_str=orjson.dumps(data).decode().translate(_LINE_ENDS))
