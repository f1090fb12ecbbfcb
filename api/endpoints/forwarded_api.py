"""The paths of OpenAI's and Anthropic's APIs whose every request is forwarded. docs/clients.md lists what works."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.endpoints import openai_wire
from api.endpoints.description import body_of, errors_of, stream_of
from api.endpoints.dropin import ForwardedPath, forward, forwarded_query
from api.endpoints.dropin_wire import EVENT_STREAM, AnthropicErrors, ForwardedBody, read_fields
from api.endpoints.middleware import CheckedRoute, needs
from api.endpoints.validation import refused

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
@needs("user")
async def completions(request: Request) -> Response:
    """As Ollama does. Only the same request finds the answer in the cache."""
    return await forward(request, forwarded_query(request, await read_fields(request), _COMPLETIONS), _COMPLETIONS)


@openai_router.post(
    _RESPONSES.path,
    summary="OpenAI: create a response",
    response_model=None,
    responses=_STREAM,
    openapi_extra=body_of(ResponsesBody, _INPUT),
)
@needs("user")
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
@needs("user")
async def messages(request: Request) -> Response:
    """As Ollama does. Only the same request finds the answer in the cache."""
    return await forward(request, forwarded_query(request, await read_fields(request), _MESSAGES), _MESSAGES)


@anthropic_router.post(
    _COUNT.path, summary="Anthropic: count the tokens of a message", response_model=None, openapi_extra=_MESSAGE
)
@needs("user")
async def count_tokens(request: Request) -> Response:
    """As Ollama does, where it has this path."""
    return await forward(request, forwarded_query(request, await read_fields(request), _COUNT), _COUNT)
