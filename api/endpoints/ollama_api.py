"""Ollama's API, so that its clients only change the base URL. docs/drop-in.md lists what is supported."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.endpoints import dropin, ollama_wire
from api.endpoints.description import body_of, errors_of, stream_of
from api.endpoints.documents import list_response
from api.endpoints.dropin import ForwardedPath, forward, forwarded_query
from api.endpoints.dropin_wire import ForwardedBody, parsed, read_body, read_fields
from api.endpoints.health import worker_state
from api.endpoints.ollama_wire import (
    ChatBody,
    Content,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    GenerationBody,
    OllamaForm,
    ShowBody,
)
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import refused
from api.errors import InvalidRequest
from api.ports.inference import ModelCatalog
from api.ports.question import Query

router = APIRouter(
    route_class=CheckedRoute, tags=["Ollama's API"], responses=errors_of("Ollama", ollama_wire.error_body)
)

_CHAT: Final = body_of(
    ForwardedBody,
    {"model": "llama3.2", "messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": False},
)
_GENERATE: Final = body_of(
    ForwardedBody, {"model": "llama3.2", "prompt": "What is the capital of France?", "stream": False}
)
_CHAT_PATH: Final = ForwardedPath("/api/chat", streams=True, error_line=ollama_wire.error_line)
_GENERATE_PATH: Final = ForwardedPath("/api/generate", streams=True, error_line=ollama_wire.error_line)
_EMBED: Final = body_of(EmbedBody, {"model": "nomic-embed-text", "input": ["What is the capital of France?"]})
_TEXT: Final = body_of(EmbeddingsBody, {"model": "nomic-embed-text", "prompt": "What is the capital of France?"})
_SHOW: Final = body_of(ShowBody, {"model": "llama3.2"})


@router.post(
    "/api/chat",
    summary="Ollama: answer a conversation",
    response_model=None,
    responses=stream_of(OllamaForm.media_type),
    openapi_extra=_CHAT,
)
@needs("user", "question")
async def chat(request: Request) -> Response:
    """Through the fleet's cache, as POST /query is."""
    return await _answered(request, _CHAT_PATH, ChatBody, ollama_wire.in_message)


@router.post(
    "/api/generate",
    summary="Ollama: answer a prompt",
    response_model=None,
    responses=stream_of(OllamaForm.media_type),
    openapi_extra=_GENERATE,
)
@needs("user", "question")
async def generate(request: Request) -> Response:
    """The same as a conversation of one turn, and cached together with those."""
    return await _answered(request, _GENERATE_PATH, GenerateBody, ollama_wire.in_response)


async def _answered(request: Request, path: ForwardedPath, kind: type[GenerationBody], content: Content) -> Response:
    """Answers a plain question by meaning, and forwards everything else."""
    fields = await read_fields(request)
    try:
        body = parsed(fields, kind)
        query = await _query(request, body)
    except InvalidRequest:
        query = forwarded_query(request, fields, path)
    del fields
    if query.forwarded is not None:
        return await forward(request, query, path)
    form = OllamaForm(body.model, content, query.options)
    return await dropin.reply(request, query, lambda _: form, stream=body.stream)


@router.post("/api/embed", summary="Ollama: embed texts", response_model=None, openapi_extra=_EMBED)
@needs("user", "request")
async def embed(request: Request) -> Response:
    """By the model asked for, on Ollama."""
    body = await read_body(request, EmbedBody)
    body.options = dropin.embedding_options(request, body.options)
    found = await dropin.embeddings(request, body.model, body.texts, body.extra)
    fields = ollama_wire.embed_fields(body.model, found)
    return list_response(fields, "embeddings", found.vectors, lambda _, vector: np.frombuffer(vector, "<f4"))


@router.post("/api/embeddings", summary="Ollama: embed one text", response_model=None, openapi_extra=_TEXT)
@needs("user", "request")
async def embeddings(request: Request) -> Response:
    """The older form of `POST /api/embed`. The vector has unit length, which Ollama's own does not always have."""
    body = await read_body(request, EmbeddingsBody)
    options = dropin.embedding_options(request, body.options)
    if not body.prompt:
        return _json({"embedding": []})
    found = await dropin.embeddings(request, body.model, [body.prompt], {"options": options} if options else {})
    vector = np.frombuffer(found.vectors[0], "<f4")
    return Response(
        orjson.dumps({"embedding": vector}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )


@router.get("/api/tags", summary="Ollama: list models", response_model=None)
@needs("user")
async def tags(request: Request) -> Response:
    """Of all backends together."""
    return _json({"models": await _catalog(request).available()})


@router.get("/api/ps", summary="Ollama: list models in memory", response_model=None)
@needs("user")
async def ps(request: Request) -> Response:
    """Of all backends together."""
    return _json({"models": await _catalog(request).in_memory()})


@router.get("/api/version", summary="Ollama: show the version", response_model=None)
@needs("user")
async def version(request: Request) -> Response:
    """Of the first backend that answers."""
    return _json({"version": await _catalog(request).version()})


@router.post("/api/show", summary="Ollama: show a model", response_model=None, openapi_extra=_SHOW)
@needs("user")
async def show(request: Request) -> Response:
    """As the first backend that has it says."""
    catalog = _catalog(request)
    body = await read_body(request, ShowBody)
    model = body.model or body.name
    if not model:
        raise refused("model", "is required")
    return _json(await catalog.show(model, verbose=body.verbose))


async def _query(request: Request, body: GenerationBody) -> Query:
    """Returns the question of a request that is understood in every field. Raises `InvalidRequest` for any other.

    A model that thinks unless told otherwise sends its thoughts in a field of their own, in their order.
    """
    options = dropin.allowed_options(request, body.options, "options.{}".format)
    query = dropin.build_query(request, body.model, body.turns(), options)
    if worker_state(request).generate_context and isinstance(body, GenerateBody):
        raise refused("context", "is wanted by OLLAMA_GENERATE_CONTEXT")
    if body.think is None and await _catalog(request).thinks(body.model):
        raise refused("think", "is not given, and the model thinks")
    return query


def _catalog(request: Request) -> ModelCatalog:
    return worker_state(request).catalog


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
