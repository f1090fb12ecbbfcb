"""OpenAI's API, as far as Ollama supports it. docs/drop-in.md lists what is supported."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.endpoints import dropin, openai_wire
from api.endpoints.description import body_of, errors_of, stream_of
from api.endpoints.documents import list_response
from api.endpoints.dropin import ForwardedPath, forward, forwarded_query
from api.endpoints.dropin_wire import ForwardedBody, parsed, read_body, read_fields
from api.endpoints.health import worker_state
from api.endpoints.openai_wire import ChatCompletionBody, EmbeddingsBody, OpenAIForm
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import refused
from api.errors import InvalidRequest, UpstreamError, UpstreamFault
from api.ports.question import Query
from api.values import model_key

router = APIRouter(
    route_class=CheckedRoute, tags=["OpenAI's API"], responses=errors_of("OpenAI", openai_wire.error_body)
)

_CHAT: Final = body_of(
    ForwardedBody,
    {"model": "llama3.2", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
)
_CHAT_PATH: Final = ForwardedPath("/v1/chat/completions", streams=False, error_line=openai_wire.error_line)
_EMBEDDINGS: Final = body_of(EmbeddingsBody, {"model": "nomic-embed-text", "input": ["What is the capital of France?"]})


@router.post(
    "/v1/chat/completions",
    summary="OpenAI: answer a conversation",
    response_model=None,
    responses=stream_of(OpenAIForm.media_type),
    openapi_extra=_CHAT,
)
@needs("user", "question")
async def chat_completions(request: Request) -> Response:
    """Through the fleet's cache, as POST /query is."""
    fields = await read_fields(request)
    try:
        body = parsed(fields, ChatCompletionBody)
        query = await _query(request, body)
    except InvalidRequest:
        query = forwarded_query(request, fields, _CHAT_PATH)
    del fields
    if query.forwarded is not None:
        return await forward(request, query, _CHAT_PATH)
    include_usage = body.stream_options.include_usage
    form = partial(OpenAIForm, body.model, options=query.options, include_usage=include_usage)
    return await dropin.reply(request, query, form, stream=body.stream)


async def _query(request: Request, body: ChatCompletionBody) -> Query:
    """Returns the question of a request that is understood in every field. Raises `InvalidRequest` for any other."""
    options = dropin.allowed_options(request, body.options(), str)
    query = dropin.build_query(request, body.model, [message.turn() for message in body.messages], options)
    if body.reasoning_effort is None and await worker_state(request).catalog.thinks(body.model):
        raise refused("reasoning_effort", "is not given, and the model thinks")
    return query


@router.post("/v1/embeddings", summary="OpenAI: embed texts", response_model=None, openapi_extra=_EMBEDDINGS)
@needs("user", "request")
async def embeddings(request: Request) -> Response:
    """By the model asked for, on Ollama."""
    body = await read_body(request, EmbeddingsBody)
    if not body.texts:
        raise InvalidRequest("invalid input")
    found = await dropin.embeddings(request, body.model, body.texts, body.extra)
    row = openai_wire.embedding_row(body.encoding_format)
    return list_response(openai_wire.embeddings_fields(body.model, found), "data", found.vectors, row)


@router.get("/v1/models/{name:path}", summary="OpenAI: show a model", response_model=None)
@needs("user")
async def model(request: Request, name: str) -> Response:
    """One of `GET /v1/models`."""
    key = model_key(name)
    for row in openai_wire.models_document(await worker_state(request).catalog.available())["data"]:
        if model_key(row["id"]) == key:
            return _json(row)
    raise UpstreamError(UpstreamFault.MODEL_NOT_FOUND, f"model '{name}' not found")


@router.get("/v1/models", summary="OpenAI: list models", response_model=None)
@needs("user")
async def models(request: Request) -> Response:
    """Of all backends together."""
    state = worker_state(request)
    return _json(openai_wire.models_document(await state.catalog.available()))


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
