"""Shared by the endpoints of other APIs: builds a `Query` from messages, and a response from its answer.

A request that this module refuses with `InvalidRequest` is not wrong: `forwarding` sends it to Ollama as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.endpoints.dropin_wire import AnswerForm, parsed, without_empty_fields
from api.endpoints.forwarding import check_num_ctx
from api.endpoints.health import worker_state
from api.endpoints.streaming import AnswerStream, cache_headers, cancel_on_disconnect
from api.endpoints.validation import Options, list_header, refused, request_timeout
from api.ports.question import RAW, Query, parse
from api.unicode_text import is_blank
from api.values import ChatMessage, EmbeddingRequest, Embeddings


def build_query(request: Request, model: str, turns: Sequence[ChatMessage], options: dict[str, Any]) -> Query:
    """Builds a query. The last message is the question; a system message at the start is the instruction."""
    if not turns or turns[-1].role != "user":
        raise refused("messages", "the last message must have the role `user`")
    if is_blank(turns[-1].content):
        raise refused("messages", "the last message has no visible character")
    earlier = tuple(turns[:-1])
    system = earlier[0].content if earlier and earlier[0].role == "system" else None
    return Query(
        question=turns[-1].content,
        tenant=worker_state(request).access.tenant(request, None),
        model=model,
        top_k=0,
        options=options,
        history=earlier if system is None else earlier[1:],
        cache_control=parse(list_header(request.headers, "cache-control")),
        timeout=request_timeout(request.headers),
        template=RAW,
        system=system,
        request_id=request.state.request_id,
    )


def allowed_options(request: Request, given: dict[str, Any], display_name: Callable[[str], str]) -> dict[str, Any]:
    """Validates options like POST /query, and the context length."""
    check_num_ctx(request, given)
    num_ctx = given.get("num_ctx")
    if num_ctx is not None:
        given = {name: value for name, value in given.items() if name != "num_ctx"}
    options = parsed(without_empty_fields(given, Options), Options, display_name).model_dump(exclude_none=True)
    if num_ctx is None or num_ctx == worker_state(request).num_ctx:
        return options
    if not isinstance(num_ctx, int) or num_ctx < 1:
        raise refused("options.num_ctx", "is not a positive integer")
    return {**options, "num_ctx": num_ctx}


async def reply(request: Request, query: Query, form: AnswerForm, *, stream: bool) -> Response:
    """Runs the query flow and returns its response. Raises the errors of the flow."""
    state = worker_state(request)
    request.state.query = query
    if stream:
        return AnswerStream(state.queries.stream(query), query.cache_control, state.streaming, form)
    async with cancel_on_disconnect(request.receive):
        answered = request.state.answered = await state.queries.answer(query)
    return Response(
        orjson.dumps(form.buffered(answered)),
        headers=cache_headers(answered, query.cache_control),
        media_type="application/json",
    )


async def embeddings(request: Request, model: str, texts: Sequence[str], extra: dict[str, Any]) -> Embeddings:
    """Returns the vectors of `texts` from `model` on Ollama.

    Raises `InvalidRequest` and the errors of `EmbeddingCalls.embed`.
    """
    state = worker_state(request)
    tenant = state.access.tenant(request, None)
    if len(texts) > state.embed_max_inputs:
        raise refused("input", f"has {len(texts)} texts, but EMBED_MAX_INPUTS is {state.embed_max_inputs}")
    embedding_request = EmbeddingRequest(model, tuple(texts), extra, tenant, request_timeout(request.headers))
    async with cancel_on_disconnect(request.receive):
        return await state.embeddings.embed(embedding_request)
