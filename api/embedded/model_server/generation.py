"""`POST /api/chat` and `POST /api/generate`: streams an answer as NDJSON, or sends one document.

If the client disconnects, the generation stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from api.cancellation import log_failure
from api.embedded.model_server.bodies import ChatBody, GenerateBody, GenerationBody, OllamaFault, read_body
from api.embedded.model_server.engine import Finished, ServerState, Task, chat_task, generate_task, state_of
from api.embedded.model_server.quoting import parse_passages, quote

Answer = AsyncGenerator[str | Finished, None]
Content = Callable[[str], dict[str, Any]]
"""Wraps a text for an endpoint: chat in `message`, generate in `response`."""


class GenerationReply:
    """An ASGI response. `started` is `time.perf_counter_ns()` when the request arrived."""

    def __init__(self, model: str, answer: Answer, content: Content, *, stream: bool, started: int) -> None:
        self._model = model
        self._answer = answer
        self._content = content
        self._stream = stream
        self._started = started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer unless the client disconnects first. Frees the model in both cases."""
        async with aclosing(self._answer):
            send_it = self._send_lines(send) if self._stream else self._send_buffered(scope, receive, send)
            await _cancel_on_disconnect(receive, send_it)

    async def _send_buffered(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts: list[str] = []
        fields: dict[str, Any] = {}
        try:
            async for piece in self._answer:
                if isinstance(piece, Finished):
                    fields = self._end("".join(texts), piece)
                else:
                    texts.append(piece)
        except OllamaFault as fault:
            await JSONResponse({"error": fault.message}, fault.status)(scope, receive, send)
        else:
            await JSONResponse(fields)(scope, receive, send)

    async def _send_lines(self, send: Send) -> None:
        """Delays the status until the first piece, like Ollama, so that an earlier fault can set the status."""
        is_begun = False
        try:
            async for piece in self._answer:
                if not is_begun:
                    is_begun = True
                    await _begin(send, 200, b"application/x-ndjson")
                line = self._end("", piece) if isinstance(piece, Finished) else self._part(piece)
                await _send_line(send, line)
        except OllamaFault as fault:
            if not is_begun:
                await _begin(send, fault.status, b"application/json")
            await _send_line(send, {"error": fault.message})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _part(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **self._content(text), "done": False}

    def _end(self, text: str, finished: Finished) -> dict[str, Any]:
        return {
            **self._part(text),
            "done": True,
            "done_reason": finished.reason,
            "total_duration": time.perf_counter_ns() - self._started,
            "load_duration": 0,
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": finished.prompt_duration,
            "eval_count": finished.tokens,
            "eval_duration": finished.duration,
        }


async def _begin(send: Send, status: int, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


async def _send_line(send: Send, fields: dict[str, Any]) -> None:
    body = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work`, and cancels it when the client disconnects. Read the request's body before."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.create_task(watch())
    log_failure(watching)
    try:
        await task
    except asyncio.CancelledError:
        if not watching.done():  # not the client: the server is stopping
            raise
    finally:
        watching.cancel()


def now() -> str:
    """Returns the current time as RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def chat(request: Request) -> GenerationReply | JSONResponse:
    """Answers the last message of a conversation."""
    state = state_of(request)
    body = await read_body(request, ChatBody)
    state.catalog.find_capable(body.model, "completion", "chat")
    read = parse_passages(body)
    if read is not None:
        return _stream_reply(body, quote(read, state.embedder), _message)
    return _reply(state, body, chat_task(body), _message)


async def generate(request: Request) -> GenerationReply | JSONResponse:
    """Answers one prompt."""
    state = state_of(request)
    body = await read_body(request, GenerateBody)
    state.catalog.find_capable(body.model, "completion", "generate")
    return _reply(state, body, generate_task(body), lambda text: {"response": text})


def _reply(
    state: ServerState, body: GenerationBody, task: Task | None, content: Content
) -> GenerationReply | JSONResponse:
    if task is None:
        return JSONResponse(_load_response(body, content))
    return _stream_reply(body, state.text_model.answer(task), content)


def _stream_reply(body: GenerationBody, answer: Answer, content: Content) -> GenerationReply:
    return GenerationReply(body.model, answer, content, stream=body.stream, started=time.perf_counter_ns())


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _load_response(body: GenerationBody, content: Content) -> dict[str, Any]:
    """Returns Ollama's response to a request that only loads or unloads. Here the model always stays loaded."""
    reason = "unload" if body.unloads else "load"
    return {"model": body.model, "created_at": now(), **content(""), "done": True, "done_reason": reason}
