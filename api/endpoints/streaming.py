"""An answer as POST /query gives it: the document, and the headers that tell of the cache.

The sending of an event stream: one writer at a time, a sign of life while nothing flows, patience with an end.

An answer as a stream, in whatever form.

The response begins with the answer's first words. Whatever goes wrong before is an ordinary error response.

An answer as server-sent events: `sources`, `token`s, then `done` or `error`. docs/streaming.md shows the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.cancellation import log_failure
from api.endpoints.bodies import ClientDisconnected, cancel_on_disconnect
from api.endpoints.dropin_wire import StreamForm, single_line
from api.endpoints.problems import problem_document
from api.errors import InternalError, RagherdError
from api.ports.question import AnswerEvent, AnswerFinished, AnswerStarted, CacheControl
from api.values import CacheMatch, CacheStatus, Token


class SourceOut(BaseModel):
    """A passage that the model was given."""

    document_id: str
    title: str
    chunk: int
    text: str
    score: float
    source: str | None
    version: str | None
    revision: int


class CacheOut(BaseModel):
    """How the cache took part in the answer."""

    status: CacheStatus
    kind: Literal["exact", "semantic"] | None
    similarity: float | None
    age_seconds: float | None
    entry: str | None


class TimingsOut(BaseModel):
    """Milliseconds spent in each stage."""

    total: float
    embed: float
    cache: float
    retrieve: float
    generate: float


class UsageOut(BaseModel):
    """Tokens that this answer cost; 0 if it came from the cache."""

    prompt_tokens: int
    completion_tokens: int


class QueryOut(BaseModel):
    """An answer and where it came from."""

    answer: str
    model: str
    request_id: str
    sources: list[SourceOut]
    cache: CacheOut
    timings_ms: TimingsOut
    usage: UsageOut


def document(answered: AnswerFinished, request_id: str) -> dict[str, Any]:
    """As `QueryOut` has it; a dictionary, since validating our own output would double the cost of a hit."""
    match, timings, usage = answered.match, answered.timings, answered.usage
    return {
        "answer": answered.answer,
        "model": answered.model,
        "request_id": request_id,
        "sources": answered.sources,
        "cache": {
            "status": answered.status,
            "kind": match.kind if match else None,
            "similarity": round(match.similarity, 6) if match else None,
            "age_seconds": match.age_seconds if match else None,
            "entry": answered.entry,
        },
        "timings_ms": {
            "total": round(timings.total * 1000, 3),
            "embed": round(timings.embed * 1000, 3),
            "cache": round(timings.cache * 1000, 3),
            "retrieve": round(timings.retrieve * 1000, 3),
            "generate": round(timings.generate * 1000, 3),
        },
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    }


def cache_headers(answer: AnswerStarted | AnswerFinished, control: CacheControl) -> dict[str, str]:
    """`Cache-Status` (RFC 9211) and `Age` (RFC 9111). Whether it was stored is not known of an opening."""
    if answer.match is not None:
        return {"Cache-Status": _hit(answer.status, answer.match), "Age": str(int(answer.match.age_seconds))}
    stored = "; stored" if isinstance(answer, AnswerFinished) and answer.stored else ""
    collapsed = "; collapsed" if answer.status is CacheStatus.COALESCED else ""
    return {"Cache-Status": f"ragherd; fwd={_forwarded(answer.status, control)}{stored}{collapsed}"}


def _hit(status: CacheStatus, match: CacheMatch) -> str:
    if status is CacheStatus.STALE:
        return "ragherd; hit; detail=stale"
    return f"ragherd; hit; ttl={match.ttl_seconds}; detail={match.kind}"


def _forwarded(status: CacheStatus, control: CacheControl) -> str:
    """Why the cache did not answer, in RFC 9211's words."""
    if not control.reads:
        return "request"
    return "bypass" if status is CacheStatus.BYPASS else "miss"


@dataclass(frozen=True, slots=True)
class Streaming:
    """Seconds. `heartbeat`: without a byte until a comment is sent. `stall`: that a reader may take nothing."""

    heartbeat: float = 15.0
    stall: float = 60.0


class EventWire:
    """One response. What the reader has not taken yet makes the next `send` wait: nothing is queued here.

    `heartbeat`: what a heartbeat sends; None for a format that has nothing for it.
    """

    def __init__(self, send: Send, streaming: Streaming, heartbeat: bytes | None = KEEPALIVE_COMMENT) -> None:
        self._send = send
        self._streaming = streaming
        self._sign_of_life = heartbeat
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0
        self.is_open = False

    @asynccontextmanager
    async def opened(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> AsyncIterator[None]:
        """Begins the response; heartbeats go on while the block runs."""
        self.is_open = True
        await self._write({"type": "http.response.start", "status": status, "headers": headers})
        if self._sign_of_life is None:
            yield
            return
        heartbeats = asyncio.create_task(self._keep_alive(self._sign_of_life))
        log_failure(heartbeats, OSError)  # the next to send finds out
        try:
            yield
        finally:
            heartbeats.cancel()

    async def send(self, chunk: bytes) -> None:
        """Raises `ClientDisconnected` for a reader that takes nothing for too long."""
        await self._write({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Ends the response."""
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, message: Message) -> None:
        async with self._writing:
            stalled = asyncio.timeout(self._streaming.stall)
            try:
                async with stalled:
                    await self._send(message)
            except TimeoutError as error:
                if not stalled.expired():
                    raise
                raise ClientDisconnected from error
            self._sent_at = self._loop.time()

    async def _keep_alive(self, heartbeat: bytes) -> None:
        while True:
            silent = self._loop.time() - self._sent_at
            if silent >= self._streaming.heartbeat:
                with suppress(ClientDisconnected):  # whoever sends next finds out
                    await self.send(heartbeat)
                silent = 0.0
            await asyncio.sleep(self._streaming.heartbeat - silent)


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
        """Sends everything. Raises what the flow raises before its first words, and `ClientDisconnected`."""
        wire = EventWire(send, self._streaming, self._form.heartbeat)
        try:
            async with cancel_on_disconnect(receive), self._answer as events:
                opening = await anext(events)
                assert isinstance(opening, AnswerStarted), "the flow begins with an opening"
                self.headers.update(cache_headers(opening, self._control))
                async with wire.opened(self.status_code, self.raw_headers):
                    await _send(wire, self._form.opening(opening))
                    await self._send_rest(wire, events)
        except ClientDisconnected:
            if not wire.is_open:
                raise
            return
        await wire.end()

    async def _send_rest(self, wire: EventWire, events: Events) -> None:
        try:
            async for event in events:
                if isinstance(event, Token):
                    await _send(wire, self._form.token(event))
                elif isinstance(event, AnswerFinished):
                    await _send(wire, self._form.done(event))
        except RagherdError as error:
            await _send(wire, self._form.error(error))
        except ClientDisconnected:
            raise
        except Exception:  # a fault of our own: the reader is told, the log gets the traceback where it is raised to
            with suppress(ClientDisconnected):
                await _send(wire, self._form.error(InternalError()))
            raise


async def _send(wire: EventWire, chunk: bytes) -> None:
    if chunk:
        await wire.send(chunk)


MEDIA_TYPE: Final = "text/event-stream"


def accepted(headers: Headers) -> bool:
    """Whether the `Accept` header names event streams, and not to refuse them."""
    accept = ",".join(headers.getlist("accept")).lower()
    if MEDIA_TYPE not in accept:
        return False
    for media_range in accept.split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        if kind == MEDIA_TYPE:
            return not any(parameter.replace(" ", "").rstrip("0.") == "q=" for parameter in parameters)
    return False


class EventStream(AnswerStream):
    """The stream of POST /query."""

    def __init__(
        self,
        request: Request,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
    ) -> None:
        super().__init__(answer, control, streaming, _Form(request.url.path, request.state.request_id))


class _Form:
    """Server-sent events of `POST /query`."""

    media_type = MEDIA_TYPE
    heartbeat: bytes | None = KEEPALIVE_COMMENT

    def __init__(self, path: str, request_id: str) -> None:
        self._path = path
        self._request_id = request_id

    def opening(self, opening: AnswerStarted) -> bytes:
        return _event("sources", opening.sources)

    def token(self, token: Token) -> bytes:
        return _event("token", {"text": token.text})

    def done(self, answered: AnswerFinished) -> bytes:
        whole = document(answered, self._request_id)
        return _event("done", {name: value for name, value in whole.items() if name != "answer"})

    def error(self, error: RagherdError) -> bytes:
        return _event("error", problem_document(error, path=self._path, request_id=self._request_id))


def _event(name: str, data: Any) -> bytes:
    return format_sse_event(event=name, data_str=single_line(data))
