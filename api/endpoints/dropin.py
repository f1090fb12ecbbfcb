"""Shared by the endpoints of other APIs: questions for the flow, and requests that are forwarded.

A plain question becomes a `Query` that may be answered by meaning. A request that Ragherd does not understand in every
field (tools, images, a schema, a template) is not refused: `forward` sends it to Ollama as it came. It passes the
cache, single flight, bulkhead, breaker and failover with Ollama's answer as its text, and only the same request finds
that answer again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.endpoints.dropin_wire import (
    EVENT_STREAM,
    NDJSON,
    AnswerForm,
    ForwardedBody,
    ForwardedForm,
    parsed,
    tokens_in,
    without_empty_fields,
)
from api.endpoints.fast_path import Repeatable
from api.endpoints.health import charge_request, worker_state
from api.endpoints.model_admin import is_zero, unloaded
from api.endpoints.streaming import AnswerStream, CancelOnDisconnect, cache_headers
from api.endpoints.validation import Options, list_header, refused, request_priority, request_timeout
from api.errors import InvalidRequest, RagherdError
from api.ports.question import CLIENT_HEADER, RAW, AnswerFinished, Query, parse
from api.unicode_text import is_blank
from api.values import ChatMessage, EmbeddingRequest, Embeddings, ForwardedRequest, Priority, Usage

MAX_QUESTION: Final = 8_000
"""Characters of the question that are kept for logs and invalidation."""
UNRELATED: Final = frozenset({"keep_alive", "stream", "user", "metadata"})
"""Fields on which the words of an answer do not depend. `stream` is part of the digest in its own way."""
READ: Final = frozenset(
    {
        "context",
        "input",
        "keep_alive",
        "max_tokens",
        "messages",
        "model",
        "options",
        "previous_response_id",
        "prompt",
        "store",
        "stream",
        "tools",
    }
)
"""Fields that decide what Ragherd allows, and how it reads the answer."""


def build_query(request: Request, model: str, turns: Sequence[ChatMessage], options: dict[str, Any]) -> Query:
    """Builds a query. The last message is the question; a system message at the start is the instruction."""
    if not turns or turns[-1].role != "user":
        raise refused("messages", "the last message must have the role `user`")
    if is_blank(turns[-1].content):
        raise refused("messages", "the last message has no visible character")
    worker_state(request).access.check_model(request, model)
    earlier = tuple(turns[:-1])
    system = earlier[0].content if earlier and earlier[0].role == "system" else None
    return Query(
        question=turns[-1].content,
        tenant=worker_state(request).access.tenant(request, None),
        charge=worker_state(request).access.charge(request),
        model=model,
        top_k=0,
        options=options,
        history=earlier if system is None else earlier[1:],
        cache_control=parse(list_header(request.headers, "cache-control")),
        timeout=request_timeout(request.headers),
        priority=_priority(request),
        template=RAW,
        system=system,
        request_id=request.state.request_id,
        client=_client(request),
    )


def _priority(request: Request) -> Priority:
    return worker_state(request).access.priority(request, request_priority(request.headers))


def _client(request: Request) -> str:
    """Returns the name of the end user while an experiment runs."""
    running = worker_state(request).experiments.running
    return "" if running is None else request.headers.get(CLIENT_HEADER, "")


def allowed_options(request: Request, given: dict[str, Any], display_name: Callable[[str], str]) -> dict[str, Any]:
    """Validates options like POST /query, and the context length."""
    check_runner_options(request, given)
    num_ctx = given.get("num_ctx")
    if num_ctx is not None:
        given = {name: value for name, value in given.items() if name != "num_ctx"}
    options = parsed(without_empty_fields(given, Options), Options, display_name).model_dump(exclude_none=True)
    if num_ctx is None or num_ctx == worker_state(request).num_ctx:
        return options
    if not isinstance(num_ctx, int) or num_ctx < 1:
        raise refused("options.num_ctx", "is not a positive integer")
    return {**options, "num_ctx": num_ctx}


def embedding_options(request: Request, given: dict[str, Any]) -> dict[str, Any]:
    """Validates the options of an embedding. Only `num_ctx` may reload the model, which others' questions may need."""
    options = allowed_options(request, given, "options.{}".format)
    return options if given.get("num_ctx") is None else {**options, "num_ctx": given["num_ctx"]}


async def reply(request: Request, query: Query, form: Callable[[str], AnswerForm], *, stream: bool) -> Response:
    """Runs the query flow and returns its response. `form` takes the request id. Raises the errors of the flow."""
    state, request_id = worker_state(request), request.state.request_id
    request.state.query = query
    if stream:
        return AnswerStream(state.queries.stream(query), query.cache_control, state.streaming, form(request_id))
    with CancelOnDisconnect(request.receive):
        answered = request.state.answered = await state.queries.answer(query)
    encoded = partial(_encoded, form)
    request.state.repeatable = Repeatable(await request.body(), query, encoded)
    headers = cache_headers(answered, query.cache_control)
    return Response(encoded(answered, request_id), headers=headers, media_type="application/json")


def _encoded(form: Callable[[str], AnswerForm], answered: AnswerFinished, request_id: str) -> bytes:
    return orjson.dumps(form(request_id).buffered(answered))


async def embeddings(request: Request, model: str, texts: Sequence[str], extra: dict[str, Any]) -> Embeddings:
    """Returns the vectors of `texts` from `model` on Ollama.

    Raises `InvalidRequest` and the errors of `EmbeddingCalls.embed`.
    """
    state = worker_state(request)
    tenant = state.access.tenant(request, None)
    state.access.check_model(request, model)
    if len(texts) > state.embed_max_inputs:
        raise refused("input", f"has {len(texts)} texts, but EMBED_MAX_INPUTS is {state.embed_max_inputs}")
    charge = await charge_request(request)
    timeout, priority = request_timeout(request.headers), _priority(request)
    embedding_request = EmbeddingRequest(model, tuple(texts), extra, tenant, timeout, priority=priority)
    with CancelOnDisconnect(request.receive):
        found = await state.embeddings.embed(embedding_request)
    if charge is not None:
        state.limiter.spend(charge.plan, Usage(found.prompt_tokens, 0))
    return found


# -- requests that are forwarded ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardedPath:
    """A path that is forwarded, its default for `stream`, and the form of an error in the middle of a stream.

    `may_stream`: false if it answers with one document, whatever `stream` says.
    """

    path: str
    streams: bool
    error_line: Callable[[RagherdError], bytes]
    may_stream: bool = True

    @property
    def media_type(self) -> str:
        """The media type of its streams."""
        return EVENT_STREAM if self.path.startswith("/v1/") else NDJSON


def forwarded_query(request: Request, fields: Mapping[str, Any], path: ForwardedPath) -> Query:
    """Builds the query of a request that is forwarded. Raises `InvalidRequest`.

    The caller should drop `fields` before it waits for the answer: they take many times the memory of the body.
    """
    check_runner_options(request, fields.get("options"))
    if fields.get("shift") is False and worker_state(request).pins_options:
        raise refused("shift", _RELOADS)
    return query_of(request, fields, forwarded_request(fields, path))


async def forward(request: Request, query: Query, path: ForwardedPath) -> Response:
    """Returns Ollama's answer, or the cached answer to the same request. Raises the errors of the flow."""
    state = worker_state(request)
    request.state.query = query
    assert query.forwarded is not None, "made by `forwarded_query`"
    forwarded = query.forwarded
    if forwarded.only_loads and is_zero(forwarded.fields.get("keep_alive")):
        return await unloaded(request, path.path, forwarded.body)
    if forwarded.streams:
        form = ForwardedForm(path.media_type, path.error_line)
        return AnswerStream(state.queries.stream(query), query.cache_control, state.streaming, form)
    # Neither from the cache, nor shared: another request may do the opposite, and a recording comes once.
    bypasses = "load" if forwarded.only_loads else "form" if forwarded.content_type else ""
    if bypasses:
        query = replace(query, cache_control=replace(query.cache_control, no_store=True))
    with CancelOnDisconnect(request.receive):
        answered = request.state.answered = await state.queries.answer(query)
    headers = cache_headers(answered, query.cache_control)
    if not bypasses:
        request.state.repeatable = Repeatable(await request.body(), query, _as_it_came)
    else:
        headers["Cache-Status"] = f"ragherd; fwd=bypass; detail={bypasses}"
    is_text = forwarded.content_type and not answered.answer.startswith("{")
    return _document(answered, headers, "text/plain" if is_text else "application/json")


def _as_it_came(answered: AnswerFinished, _request_id: str) -> bytes:
    return answered.answer.encode()


def _document(answered: AnswerFinished, headers: Mapping[str, str], media_type: str = "application/json") -> Response:
    return Response(answered.answer.encode(), headers=headers, media_type=media_type)


RUNNER_OPTIONS: Final = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""Options with which Ollama loads a model. Another value makes it load the model again."""
_RELOADS: Final = "may not be set, because it reloads the model (OLLAMA_PIN_OPTIONS)"
SIZES: Final = frozenset({"num_ctx", "num_batch"})
"""Those that cost memory."""


def check_runner_options(request: Request, options: Any) -> None:
    """Raises `InvalidRequest` for options that would harm others: they make Ollama load the model again."""
    if not isinstance(options, dict):
        return
    state = worker_state(request)
    for name in RUNNER_OPTIONS:
        if (given := options.get(name)) is None:
            continue
        if name == "num_ctx" and state.num_ctx is not None and given != state.num_ctx:
            raise refused("options.num_ctx", f"is fixed at {state.num_ctx} (OLLAMA_NUM_CTX)")
        if state.pins_options and not (name == "num_ctx" and given == state.num_ctx):
            raise refused(f"options.{name}", _RELOADS)
        if name in SIZES and isinstance(given, int | float) and given > state.max_num_ctx:
            raise refused(f"options.{name}", f"is over {state.max_num_ctx} (OLLAMA_MAX_NUM_CTX)")


def query_of(request: Request, fields: Mapping[str, Any], forwarded: ForwardedRequest) -> Query:
    """Returns the query of a forwarded request with these fields. Raises `InvalidRequest` without a model."""
    named = {} if fields.get("model") is None else {"model": fields["model"]}
    model = parsed(named, ForwardedBody).model
    worker_state(request).access.check_model(request, model)
    return Query(
        question=asked_in(fields)[:MAX_QUESTION],
        tenant=worker_state(request).access.tenant(request, None),
        charge=worker_state(request).access.charge(request),
        model=model,
        top_k=0,
        options=_limit(fields),
        cache_control=parse(list_header(request.headers, "cache-control")),
        timeout=request_timeout(request.headers),
        priority=_priority(request),
        template=RAW,
        request_id=request.state.request_id,
        client=_client(request),
        forwarded=forwarded,
    )


def forwarded_request(fields: Mapping[str, Any], path: ForwardedPath) -> ForwardedRequest:
    """Returns the request for Ollama. Its digest covers the path and every field that the answer depends on.

    Ollama reads field names in any letter case. A name that Ragherd would overlook is refused, because it could
    exceed a limit, or turn on a stream that nobody expects. Raises `InvalidRequest`.
    """
    for name in fields:
        if name not in READ and (meant := name.casefold()) in READ:
            raise refused(name, f"write `{meant}`")
    given = fields.get("stream")
    if not isinstance(given, bool | None):
        raise refused("stream", "is not a boolean")
    streams = path.may_stream and (path.streams if given is None else given)
    facts = {name: value for name, value in fields.items() if name not in UNRELATED}
    try:
        said = orjson.dumps([path.path, streams, facts], option=orjson.OPT_SORT_KEYS)
        body = orjson.dumps(fields)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    asks = _ASKS.get(path.path)
    only_loads = asks is not None and not fields.get(asks)
    streams = streams and not only_loads
    is_silent = not streams or bool(fields.get("tools"))
    digest, tokens = hashlib.sha256(said).hexdigest(), tokens_in(fields, body)
    return ForwardedRequest(path.path, body, digest, streams, only_loads, is_silent, prompt_tokens=tokens)


_ASKS: Final = {"/api/chat": "messages", "/api/generate": "prompt"}
"""The field with the question."""


def asked_in(fields: Mapping[str, Any]) -> str:
    """Returns the last text that the user wrote, wherever the API has it; empty if there is none."""
    for name in ("prompt", "input"):
        if isinstance(text := fields.get(name), str):
            return text
    for name in ("messages", "input"):
        turns = fields.get(name)
        for turn in reversed(turns) if isinstance(turns, list) else ():
            if isinstance(turn, dict) and turn.get("role") == "user":
                return _text(turn.get("content"))
    return ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content[:MAX_QUESTION] if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _limit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the caller's limit of tokens as an option: an answer that reaches it is complete."""
    options = fields.get("options")
    given = [options.get("num_predict") if isinstance(options, dict) else None]
    given += [fields.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limits = [limit for limit in given if isinstance(limit, int) and limit > 0]
    return {"num_predict": limits[0]} if limits else {}
