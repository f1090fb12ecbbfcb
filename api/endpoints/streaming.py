"""Response models and server-sent events for POST /query: one writer, heartbeats, errors as events.

The imitated APIs stream through it too. A response starts with the first event of the answer, so an earlier error is an
ordinary error response. `EventWire` sends with backpressure and heartbeats. `AnswerStream` runs the flow. The events
are `queued` while the answer waits for a permit, `sources`, `token`s, then `done` or `error`; docs/streaming.md
describes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

import orjson
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.cancellation import CancelScope, log_failure
from api.endpoints.dropin_wire import StreamForm, single_line
from api.endpoints.problems import ClientDisconnected, problem_document
from api.errors import InternalError, RagherdError
from api.ports.question import (
    UNLIMITED,
    VARIANT_HEADER,
    AnswerEvent,
    AnswerFinished,
    AnswerQueued,
    AnswerStarted,
    CacheControl,
)
from api.values import CacheStatus, Queued, Token


class CancelOnDisconnect(CancelScope):
    """Cancels the block (`with`) when the client disconnects, then raises `ClientDisconnected`.

    Read the request's body before the block: messages that `receive` returns afterwards are dropped. Send the end of
    the response after the block, because the server reports it in the same way as a disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def __enter__(self) -> Self:
        super().__enter__()
        self._watch = asyncio.create_task(_watch(self._receive, self))
        log_failure(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch.cancel()
        del self._watch  # the two refer to each other
        swallows = super().__exit__(kind, error, trace)
        if self.cancelled and (swallows or kind is None):
            raise ClientDisconnected from None
        return swallows


async def _watch(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class SourceOut(BaseModel):
    """A passage that the model received."""

    document_id: str
    title: str
    chunk: int
    text: str
    score: float
    source: str | None
    version: str | None
    revision: int
    page: int | None = Field(description="From 1. Null without pages.")
    heading: str | None = Field(description="The headings above it, joined by ` > `.")
    span: tuple[int, int] | None = Field(description="Its characters in the document's text, from and to.")
    quote: str | None = Field(
        description="The sentence of `text` that the citation rests on. Before the answer is complete, and for a "
        "passage that it does not cite, the sentence closest to the question."
    )


class CacheOut(BaseModel):
    """The cache's part in the answer."""

    status: CacheStatus
    kind: Literal["exact", "semantic"] | None
    similarity: float | None
    age_seconds: float | None
    entry: str | None
    variant: str = Field("", description="The experiment and its variant. Only while an experiment runs.")


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
    """Returns the fields of `QueryOut` as a dictionary, because validating our own output would double the cost of a
    hit.
    """
    match, timings, usage = answered.match, answered.timings, answered.usage
    shown: dict[str, Any] = {
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
    if answered.variant:
        shown["cache"]["variant"] = answered.variant
    return shown


def query_response(answered: AnswerFinished, request_id: str, control: CacheControl = UNLIMITED) -> Response:
    """Returns the response of POST /query."""
    headers = cache_headers(answered, control)
    return Response(encoded(answered, request_id), headers=headers, media_type="application/json")


def encoded(answered: AnswerFinished, request_id: str) -> bytes:
    """Returns `QueryOut` as JSON."""
    return orjson.dumps(document(answered, request_id))


def cache_headers(answer: AnswerQueued | AnswerStarted | AnswerFinished, control: CacheControl) -> dict[str, str]:
    """Returns `Cache-Status` (RFC 9211), `Age` (RFC 9111), and the variant. A stream starts before it is stored."""
    variant = {VARIANT_HEADER: answer.variant} if answer.variant else {}
    if (match := answer.match) is not None:
        fresh = f"ttl={match.ttl_seconds}; detail={match.kind}{'-near' if match.near else ''}"
        hit = f"ragherd; hit; {'detail=stale' if answer.status is CacheStatus.STALE else fresh}"
        return {"Cache-Status": hit, "Age": str(int(match.age_seconds)), **variant}
    stored = "; stored" if isinstance(answer, AnswerFinished) and answer.stored else ""
    collapsed = "; collapsed" if answer.status is CacheStatus.COALESCED else ""
    return {"Cache-Status": f"ragherd; fwd={_forwarded(answer.status, control)}{stored}{collapsed}", **variant}


def _forwarded(status: CacheStatus, control: CacheControl) -> str:
    """Returns why the cache did not answer, in RFC 9211's terms."""
    if not control.reads:
        return "request"
    return "bypass" if status is CacheStatus.BYPASS else "miss"


@dataclass(frozen=True, slots=True)
class Streaming:
    """Seconds. `heartbeat` is the silence before a heartbeat, `stall` the time that a reader may stop reading."""

    heartbeat: float = 15.0
    stall: float = 60.0


class EventWire:
    """Sends one response. `send` waits until the client has read enough, so nothing is queued here.

    `heartbeat` contains the bytes to send, or None for a format without heartbeats.
    """

    def __init__(self, send: Send, streaming: Streaming, heartbeat: bytes | None = KEEPALIVE_COMMENT) -> None:
        self._send = send
        self._streaming = streaming
        self._heartbeat = heartbeat
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0
        self._begun_at = 0.0
        self._write_scope: CancelScope | None = None
        """Ends the write in progress."""
        self._silence: asyncio.TimerHandle | asyncio.Task[None] | None = None
        """Waits for the first silence, then sends heartbeats."""
        self.is_open = False

    @asynccontextmanager
    async def opened(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> AsyncIterator[None]:
        """Starts the response, and sends heartbeats while the block runs."""
        self.is_open = True
        self._watch = self._loop.call_later(self._streaming.stall, self._look)
        try:
            await self._write({"type": "http.response.start", "status": status, "headers": headers})
            if self._heartbeat is not None:
                self._wait_for_silence(self._heartbeat)
            yield
        finally:
            self._watch.cancel()
            if self._silence is not None:
                self._silence.cancel()

    def _look(self) -> None:
        """Ends a write that takes too long. One timer for the whole stream: one for each token would cost more."""
        scope, stall = self._write_scope, self._streaming.stall
        left = stall if scope is None else self._begun_at + stall - self._loop.time()
        if scope is not None and left <= 0:
            scope.cancel()
        else:
            self._watch = self._loop.call_later(left, self._look)

    async def send(self, chunk: bytes) -> None:
        """Raises `ClientDisconnected` if the client has not read for too long."""
        await self._write({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Ends the response, after the block of `opened`."""
        last = asyncio.timeout(self._streaming.stall)
        try:
            async with last:
                await self._write({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError as error:
            if not last.expired():
                raise
            raise ClientDisconnected from error

    async def _write(self, message: Message) -> None:
        async with self._writing:
            self._begun_at = self._loop.time()
            with CancelScope() as self._write_scope:
                await self._send(message)
            scope, self._write_scope = self._write_scope, None
            if scope is not None and scope.cancelled:
                raise ClientDisconnected
            self._sent_at = self._loop.time()

    def _wait_for_silence(self, heartbeat: bytes) -> None:
        """Starts the heartbeats at the first silence. Until then a timer is enough: most streams have none."""
        left = self._sent_at + self._streaming.heartbeat - self._loop.time()
        if left > 0:
            self._silence = self._loop.call_later(left, self._wait_for_silence, heartbeat)
        else:
            self._silence = asyncio.create_task(self._keep_alive(heartbeat))
            log_failure(self._silence, OSError)  # the next send reports it

    async def _keep_alive(self, heartbeat: bytes) -> None:
        while True:
            silent = self._loop.time() - self._sent_at
            if silent >= self._streaming.heartbeat:
                with suppress(ClientDisconnected):  # the next send reports it
                    await self.send(heartbeat)
                silent = 0.0
            await asyncio.sleep(self._streaming.heartbeat - silent)


Events = AsyncIterator[AnswerEvent]


class AnswerStream(Response):
    """Runs the flow while sending, so that a slow reader slows the language model."""

    def __init__(
        self,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
        form: StreamForm,
        queued: Callable[[Queued], bytes] | None = None,
    ) -> None:
        """`queued` encodes positions in the queue. Default: the client would not understand them."""
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": form.media_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._answer = answer
        self._control = control
        self._streaming = streaming
        self._form = form
        self._queued = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream. Raises the flow's errors before the first event, and `ClientDisconnected`."""
        wire = EventWire(send, self._streaming, self._form.heartbeat)
        try:
            with CancelOnDisconnect(receive):
                async with self._answer as events:
                    first = await anext(events)
                    while isinstance(first, AnswerQueued) and self._queued is None:
                        first = await anext(events)
                    assert isinstance(first, AnswerQueued | AnswerStarted), "the flow begins with one of these"
                    self.headers.update(cache_headers(first, self._control))
                    async with wire.opened(self.status_code, self.raw_headers):
                        await _send(wire, self._opening(first))
                        await self._send_rest(wire, events, scope.setdefault("state", {}))
        except ClientDisconnected:
            if not wire.is_open:
                raise
            return
        await wire.end()

    def _opening(self, event: AnswerQueued | AnswerStarted) -> bytes:
        if isinstance(event, AnswerStarted):
            return self._form.started(event)
        return b"" if self._queued is None else self._queued(event.place)

    async def _send_rest(self, wire: EventWire, events: Events, state: dict[str, Any]) -> None:
        try:
            async for event in events:
                if isinstance(event, Token):
                    await _send(wire, self._form.token(event))
                elif isinstance(event, AnswerFinished):
                    state["answered"] = event
                    await _send(wire, self._form.done(event))
                else:
                    await _send(wire, self._opening(event))
        except RagherdError as error:
            state["error"] = error.slug
            await _send(wire, self._form.error(error))
        except ClientDisconnected:
            raise
        except Exception:  # a bug: the client gets an error event, and the handler that catches it logs the traceback
            with suppress(ClientDisconnected):
                await _send(wire, self._form.error(InternalError()))
            raise


async def _send(wire: EventWire, chunk: bytes) -> None:
    if chunk:
        await wire.send(chunk)


MEDIA_TYPE: Final = "text/event-stream"


def accepted(headers: Headers) -> bool:
    """Returns whether the `Accept` header includes event streams with a weight above 0."""
    accept = ",".join(headers.getlist("accept")).lower()
    if MEDIA_TYPE not in accept:
        return False
    for media_range in accept.split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        if kind == MEDIA_TYPE:
            return not any(parameter.replace(" ", "").rstrip("0.") == "q=" for parameter in parameters)
    return False


class EventStream(AnswerStream):
    """The event stream of POST /query."""

    def __init__(
        self,
        request: Request,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
    ) -> None:
        form = _Form(request.url.path, request.state.request_id)
        super().__init__(answer, control, streaming, form, form.queued)


class _Form:
    """The server-sent events of POST /query."""

    media_type = MEDIA_TYPE
    heartbeat: bytes | None = KEEPALIVE_COMMENT

    def __init__(self, path: str, request_id: str) -> None:
        self._path = path
        self._request_id = request_id

    def queued(self, place: Queued) -> bytes:
        return _event("queued", {"position": place.position, "estimated_seconds": place.seconds})

    def started(self, started: AnswerStarted) -> bytes:
        return _event("sources", started.sources)

    def token(self, token: Token) -> bytes:
        return b"event: token\ndata: %b\n\n" % single_line({"text": token.text}).encode()

    def done(self, answered: AnswerFinished) -> bytes:
        whole = document(answered, self._request_id)
        return _event("done", {name: value for name, value in whole.items() if name != "answer"})

    def error(self, error: RagherdError) -> bytes:
        return _event("error", problem_document(error, path=self._path, request_id=self._request_id))


def _event(name: str, data: Any) -> bytes:
    return format_sse_event(event=name, data_str=single_line(data))
