"""OpenAI's API, as far as Ollama supports it. docs/drop-in.md lists what is supported."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.endpoints import dropin, openai_wire
from api.endpoints.description import body_of, errors_of, stream_of
from api.endpoints.documents import list_response
from api.endpoints.dropin_wire import read_body
from api.endpoints.health import worker_state
from api.endpoints.middleware import CheckedRoute, needs
from api.endpoints.openai_wire import ChatCompletionBody, EmbeddingsBody, OpenAIForm

router = APIRouter(
    route_class=CheckedRoute, tags=["OpenAI's API"], responses=errors_of("OpenAI", openai_wire.error_body)
)

_CHAT: Final = body_of(
    ChatCompletionBody,
    {"model": "llama3.2", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
)
_EMBEDDINGS: Final = body_of(EmbeddingsBody, {"model": "nomic-embed-text", "input": ["What is the capital of France?"]})


@router.post(
    "/v1/chat/completions",
    summary="OpenAI: answer a conversation",
    response_model=None,
    responses=stream_of(OpenAIForm.media_type),
    openapi_extra=_CHAT,
)
@needs("user")
async def chat_completions(request: Request) -> Response:
    """Through the fleet's cache, as POST /query is."""
    body = await read_body(request, ChatCompletionBody)
    turns = [message.turn() for message in body.messages]
    options = dropin.allowed_options(request, body.options(), lambda field: field.replace("num_predict", "max_tokens"))
    query = dropin.build_query(request, body.model, turns, options)
    request_id = request.state.request_id
    form = OpenAIForm(body.model, request_id, options, include_usage=body.stream_options.include_usage)
    return await dropin.reply(request, query, form, stream=body.stream)


@router.post("/v1/embeddings", summary="OpenAI: embed texts", response_model=None, openapi_extra=_EMBEDDINGS)
@needs("user")
async def embeddings(request: Request) -> Response:
    """By the model asked for, on Ollama."""
    body = await read_body(request, EmbeddingsBody)
    found = await dropin.embeddings(request, body.model, body.texts, body.extra)
    row = openai_wire.embedding_row(body.encoding_format)
    return list_response(openai_wire.embeddings_fields(body.model, found), "data", found.vectors, row)


@router.get("/v1/models", summary="OpenAI: list models", response_model=None)
@needs("user")
async def models(request: Request) -> Response:
    """Of all backends together."""
    state = worker_state(request)
    return _json(openai_wire.models_document(await state.catalog.available()))


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
