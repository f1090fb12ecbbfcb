"""An answer as a stream, in whatever form.

The response begins with the answer's first words. Whatever goes wrong before is an ordinary error response.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.endpoints.answer_form import StreamForm
from api.endpoints.disconnects import ClientLeft, until_client_leaves
from api.endpoints.event_wire import EventWire, Streaming
from api.endpoints.query_answer import cache_headers
from api.errors import InternalError, RagherdError
from api.model import Token
from api.query.answered import Answered, AnswerEvent, Opening
from api.query.cache_control import CacheControl

Events = AsyncIterator[AnswerEvent]


class AnswerStream(Response):
    """Runs the flow while it sends, so that a slow reader slows the language model."""

    def __init__(
        self,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
        form: StreamForm,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": form.media_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._answer = answer
        self._control = control
        self._streaming = streaming
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything. Raises what the flow raises before its first words, and `ClientLeft`."""
        wire = EventWire(send, self._streaming, self._form.sign_of_life)
        try:
            async with until_client_leaves(receive), self._answer as events:
                opening = await anext(events)
                assert isinstance(opening, Opening), "the flow begins with an opening"
                self.headers.update(cache_headers(opening, self._control))
                async with wire.opened(self.status_code, self.raw_headers):
                    await _send(wire, self._form.opening(opening))
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
                    await _send(wire, self._form.token(event))
                elif isinstance(event, Answered):
                    await _send(wire, self._form.done(event))
        except RagherdError as error:
            await _send(wire, self._form.error(error))
        except ClientLeft:
            raise
        except Exception:  # a fault of our own: the reader is told, the log gets the traceback where it is raised to
            with suppress(ClientLeft):
                await _send(wire, self._form.error(InternalError()))
            raise


async def _send(wire: EventWire, chunk: bytes) -> None:
    if chunk:
        await wire.send(chunk)
