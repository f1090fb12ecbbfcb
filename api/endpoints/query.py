"""POST /query: answers a question with one document or with an event stream."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import Response

from api.endpoints import streaming as event_stream
from api.endpoints.description import stream_of
from api.endpoints.fast_path import Repeatable
from api.endpoints.health import AppState
from api.endpoints.routes import JsonRoute, needs
from api.endpoints.streaming import CancelOnDisconnect, EventStream, QueryOut, encoded, query_response
from api.endpoints.validation import (
    CLIENT_OPENAPI,
    PRIORITY_HEADER,
    PRIORITY_OPENAPI,
    TIMEOUT_HEADER,
    TIMEOUT_OPENAPI,
    IsInteger,
    IsText,
    IsVisible,
    Options,
    StrictBody,
    list_header,
    request_priority,
    request_timeout,
)
from api.ports.document_store import DocumentFilter
from api.ports.question import CLIENT_HEADER, UNLIMITED, Query, parse
from api.values import ChatMessage, Priority

router = APIRouter(tags=["query"], route_class=JsonRoute)


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), IsText, IsVisible]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000), IsText, IsVisible]


class ConversationTurn(StrictBody):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, StringConstraints(min_length=1, max_length=32_000), IsText]


class DocumentsIn(StrictBody):
    """The documents that an answer may use: those with one of `tags` and one of `ids`.

    An empty list is refused, because it could mean none or all.
    """

    tags: Annotated[list[Name], Field(min_length=1, max_length=50, fail_fast=True)] = Field(default_factory=list)
    ids: Annotated[list[Name], Field(min_length=1, max_length=200, fail_fast=True)] = Field(default_factory=list)


class QueryIn(StrictBody):
    """A question, and overrides of the service's defaults."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"question": "What does the circuit breaker do when Ollama fails?"}}
    )

    question: Question
    model: Name | None = None
    top_k: Annotated[int, Field(ge=0, le=20), IsInteger] = 4
    history: Annotated[list[ConversationTurn], Field(max_length=100, fail_fast=True)] = Field(default_factory=list)
    tenant: Name | None = None
    options: Options = Field(default_factory=Options)
    documents: DocumentsIn = Field(default_factory=DocumentsIn)
    stream: bool = False


@router.post(
    "/query",
    response_model=QueryOut,
    summary="Answer a question",
    responses=stream_of(event_stream.MEDIA_TYPE, "queued", "sources", "token", "done", "error"),
    openapi_extra={"parameters": [TIMEOUT_OPENAPI, CLIENT_OPENAPI, PRIORITY_OPENAPI]},
)
@needs("user", "question")
async def post_query(body: QueryIn, request: Request) -> Response:
    """Answer from the fleet's cache or with the language model. See docs/http-api.md and docs/streaming.md."""
    state: AppState = request.state.worker
    query = request.state.query = build_query(body, request, state)
    if body.stream or event_stream.accepted(request.headers):
        return EventStream(request, state.queries.stream(query), query.cache_control, state.streaming)
    with CancelOnDisconnect(request.receive):
        answered = request.state.answered = await state.queries.answer(query)
    request.state.repeatable = Repeatable(await request.body(), query, encoded)
    return query_response(answered, request.state.request_id, query.cache_control)


def build_query(body: QueryIn, request: Request, state: AppState) -> Query:
    """Builds a query from the body and headers. Raises `NotAuthenticated` and `NotAuthorized`."""
    headers, access = request.headers, state.access
    has_default_priority = PRIORITY_HEADER not in headers and not access.has_batch_keys
    model = body.model or state.default_model
    access.check_model(request, model)
    return Query(
        question=body.question,
        tenant=access.tenant(request, body.tenant),
        charge=access.charge(request),
        model=model,
        top_k=body.top_k,
        options=body.options.model_dump(exclude_none=True),
        documents=DocumentFilter(tuple(body.documents.tags), tuple(body.documents.ids)),
        history=tuple([ChatMessage(turn.role, turn.content) for turn in body.history]) if body.history else (),
        cache_control=parse(list_header(headers, "cache-control")) if "cache-control" in headers else UNLIMITED,
        timeout=request_timeout(headers) if TIMEOUT_HEADER in headers else None,
        request_id=request.state.request_id,
        priority=Priority.USER if has_default_priority else access.priority(request, request_priority(headers)),
        client="" if state.experiments.running is None else headers.get(CLIENT_HEADER, ""),
    )
