"""The paths of OpenAI's and Anthropic's APIs whose every request is forwarded. docs/clients.md lists what works.

A recording to transcribe comes as a form, which goes on byte by byte. Only the model is read from it. It is kept in
memory until the answer is there, so that another backend can get it. A worker takes a few at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Literal

from fastapi import APIRouter, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response

from api.endpoints import openai_wire
from api.endpoints.description import body_of, errors_of, stream_of
from api.endpoints.dropin import ForwardedPath, forward, forwarded_query, query_of
from api.endpoints.dropin_wire import EVENT_STREAM, AnthropicErrors, ForwardedBody, read_fields
from api.endpoints.health import worker_state
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import refused
from api.errors import BulkheadFull, InvalidRequest
from api.values import ForwardedRequest

openai_router = APIRouter(
    route_class=CheckedRoute, tags=["OpenAI's API"], responses=errors_of("OpenAI", openai_wire.error_body)
)
anthropic_router = APIRouter(
    route_class=CheckedRoute, tags=["Anthropic's API"], responses=errors_of("Anthropic", AnthropicErrors.error_body)
)

_COMPLETIONS: Final = ForwardedPath("/v1/completions", streams=False, error_line=openai_wire.error_line)
_RESPONSES: Final = ForwardedPath("/v1/responses", streams=False, error_line=openai_wire.error_line)
_MESSAGES: Final = ForwardedPath(AnthropicErrors.PATH, streams=False, error_line=AnthropicErrors.error_line)
_COUNT: Final = replace(_MESSAGES, path=f"{AnthropicErrors.PATH}/count_tokens", may_stream=False)
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
_TRANSCRIPTIONS: Final = ForwardedPath(TRANSCRIPTIONS, False, openai_wire.error_line, may_stream=False)
_STREAM: Final = stream_of(EVENT_STREAM)
_PROMPT: Final = {"model": "llama3.2", "prompt": "The capital of France is"}
_INPUT: Final = {"model": "llama3.2", "input": "What is the capital of France?"}
_TURN: Final = {"model": "llama3.2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
_MESSAGE: Final = body_of(ForwardedBody, {**_TURN, "max_tokens": 100})
_STATELESS: Final = "is not supported, because Ragherd keeps no responses; send the whole input"


class ResponsesBody(ForwardedBody):
    """The body of `/v1/responses`, for its description."""

    store: Literal[False] | None = None
    previous_response_id: Literal[""] | None = None


@openai_router.post(
    _COMPLETIONS.path,
    summary="OpenAI: complete a prompt",
    response_model=None,
    responses=_STREAM,
    openapi_extra=body_of(ForwardedBody, _PROMPT),
)
@needs("user", "question")
async def completions(request: Request) -> Response:
    """As Ollama does. Only the same request finds the answer in the cache."""
    return await _passed_on(request, _COMPLETIONS)


@openai_router.post(
    _RESPONSES.path,
    summary="OpenAI: create a response",
    response_model=None,
    responses=_STREAM,
    openapi_extra=body_of(ResponsesBody, _INPUT),
)
@needs("user", "question")
async def responses(request: Request) -> Response:
    """As Ollama does, without state. Only the same request finds the answer in the cache."""
    fields = await read_fields(request)
    if fields.get("store") is not None and fields["store"] is not False:
        raise refused("store", _STATELESS)
    if fields.get("previous_response_id") not in (None, ""):
        raise refused("previous_response_id", _STATELESS)
    query = forwarded_query(request, fields, _RESPONSES)
    del fields
    return await forward(request, query, _RESPONSES)


@anthropic_router.post(
    _MESSAGES.path,
    summary="Anthropic: create a message",
    response_model=None,
    responses=_STREAM,
    openapi_extra=_MESSAGE,
)
@needs("user", "question")
async def messages(request: Request) -> Response:
    """As Ollama does. Only the same request finds the answer in the cache."""
    return await _passed_on(request, _MESSAGES)


@anthropic_router.post(
    _COUNT.path, summary="Anthropic: count the tokens of a message", response_model=None, openapi_extra=_MESSAGE
)
@needs("user", "question")
async def count_tokens(request: Request) -> Response:
    """As Ollama does, where it has this path."""
    return await _passed_on(request, _COUNT)


async def _passed_on(request: Request, path: ForwardedPath) -> Response:
    return await forward(request, forwarded_query(request, await read_fields(request), path), path)


WAIT_FOR_ROOM: Final = 15.0
"""Seconds that a recording waits, unread, until the worker has room for it."""
MODEL_BYTES: Final = 1024
"""Longest name of a model in a form."""
_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "model"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string", "minLength": 1, "maxLength": 200},
                    },
                }
            }
        },
    }
}


@openai_router.post(TRANSCRIPTIONS, summary="OpenAI: transcribe a recording", response_model=None, openapi_extra=_FORM)
@needs("user", "question")
async def transcriptions(request: Request) -> Response:
    """As Ollama does, with a model that can hear. Never from the cache."""
    kind = request.headers.get("content-type", "")
    async with _room(request):
        form = RecordingForm(kind)
        async for part in request.stream():
            form.feed(part)
        digest = hashlib.sha256(request.state.request_id.encode()).hexdigest()
        forwarded = ForwardedRequest(
            TRANSCRIPTIONS, form.body(), digest, streams=False, is_silent=True, content_type=kind
        )
        return await forward(request, query_of(request, {"model": form.model}, forwarded), _TRANSCRIPTIONS)


@asynccontextmanager
async def _room(request: Request) -> AsyncIterator[None]:
    """Waits until the worker has room for one more recording. Raises `BulkheadFull` if that takes too long."""
    room = worker_state(request).recordings
    try:
        async with asyncio.timeout(WAIT_FOR_ROOM):
            await room.acquire()
    except TimeoutError as error:
        raise BulkheadFull("recordings", "deadline", WAIT_FOR_ROOM) from error
    try:
        yield
    finally:
        room.release()


class RecordingForm:
    """A form that arrives in parts. Keeps its bytes, and reads the model's name from it. Raises `InvalidRequest`."""

    def __init__(self, content_type: str) -> None:
        kind, parameters = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not parameters.get(b"boundary"):
            raise InvalidRequest("Send a form (multipart/form-data) with the fields `file` and `model`.")
        self._parts: list[bytes] = []
        self._model = bytearray()
        self._header = bytearray()
        self._value = bytearray()
        self._is_model = False
        try:
            self._parser = MultipartParser(
                parameters[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_part_data": self._read,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.") from error

    def feed(self, part: bytes) -> None:
        """Adds the next bytes of the body."""
        self._parts.append(part)
        try:
            self._parser.write(part)
        except FormParserError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.") from error

    @property
    def model(self) -> str | None:
        """The model's name; None without one."""
        return self._model.decode(errors="replace") or None

    def body(self) -> bytes:
        """Returns the whole form."""
        whole, self._parts = b"".join(self._parts), []
        return whole

    def _begin(self) -> None:
        self._is_model = False

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._is_model = options.get(b"name") == b"model"
        self._header.clear()
        self._value.clear()

    def _read(self, data: bytes, start: int, end: int) -> None:
        if not self._is_model:
            return
        self._model += data[start:end]
        if len(self._model) > MODEL_BYTES:
            raise refused("model", f"is longer than {MODEL_BYTES} bytes")
