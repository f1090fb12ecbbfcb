"""POST /query: the main job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from api.endpoints.worker_state import worker_state
from api.errors import InvalidRequest
from api.model import CacheStatus, ChatMessage
from api.query.answered import Answered
from api.query.cache_control import CacheControl, parse
from api.query.question import Query

router = APIRouter(tags=["query"])


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate, which is no text") from None
    return text


IsText = AfterValidator(_encodable)
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), IsText]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000), IsText]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Options(_Body):
    """Those of Ollama's options that a caller may set: none that makes Ollama load the model anew."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    num_predict: Annotated[int, Field(ge=1, le=100_000)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Annotated[list[Annotated[str, IsText]], Field(max_length=16)] | None = None


class Turn(_Body):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, StringConstraints(min_length=1, max_length=32_000), IsText]


class QueryIn(_Body):
    """A question, and what may differ from the service's settings."""

    question: Question
    model: Name | None = None
    top_k: Annotated[int, Field(ge=0, le=20)] = 4
    history: Annotated[list[Turn], Field(max_length=100)] = Field(default_factory=list)
    tenant: Name | None = None
    options: Options = Field(default_factory=Options)
    stream: bool = False


class SourceOut(BaseModel):
    """A passage that the answer is grounded in."""

    document_id: str
    title: str
    chunk: int
    text: str
    score: float


class CacheOut(BaseModel):
    """The cache's part in the answer."""

    status: CacheStatus
    kind: Literal["exact", "semantic"] | None
    similarity: float | None
    age_seconds: float | None
    entry: str | None


class TimingsOut(BaseModel):
    """Milliseconds in each stage."""

    total: float
    embed: float
    cache: float
    retrieve: float
    generate: float


class UsageOut(BaseModel):
    """Tokens that this answer cost: none where the cache gave it."""

    prompt_tokens: int
    completion_tokens: int


class QueryOut(BaseModel):
    """An answer and how it came about."""

    answer: str
    model: str
    request_id: str
    sources: list[SourceOut]
    cache: CacheOut
    timings_ms: TimingsOut
    usage: UsageOut


@router.post("/query", response_model=QueryOut, summary="Answer a question")
async def post_query(body: QueryIn, request: Request) -> Response:
    """From the fleet's cache, or by the language model; see docs/http-api.md."""
    if body.stream:
        raise InvalidRequest("stream: streaming is not available; leave it out or false")
    state = worker_state(request)
    query = Query(
        question=body.question,
        tenant=state.access.tenant(request, body.tenant),
        model=body.model or state.default_model,
        top_k=body.top_k,
        options=body.options.model_dump(exclude_none=True),
        history=tuple(ChatMessage(turn.role, turn.content) for turn in body.history),
        cache_control=parse(request.headers.get("cache-control", "")),
    )
    answered = await state.queries.answer(query)
    return Response(
        orjson.dumps(_document(answered, request.state.request_id)),
        headers=_headers(answered, query.cache_control),
        media_type="application/json",
    )


def _document(answered: Answered, request_id: str) -> dict[str, Any]:
    """As `QueryOut` has it; a dictionary, since validating our own output would double the cost of a hit."""
    match, stages, usage = answered.match, answered.stages, answered.usage
    return {
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
            "total": _ms(stages.total),
            "embed": _ms(stages.embed),
            "cache": _ms(stages.cache),
            "retrieve": _ms(stages.retrieve),
            "generate": _ms(stages.generate),
        },
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _headers(answered: Answered, control: CacheControl) -> dict[str, str]:
    """`Cache-Status` (RFC 9211) and `Age` (RFC 9111)."""
    match = answered.match
    if match is not None and answered.status is CacheStatus.STALE:
        return {"Cache-Status": "ragherd; hit; detail=stale", "Age": str(int(match.age_seconds))}
    if match is not None:
        status = f"ragherd; hit; ttl={match.ttl_seconds}; detail={match.kind}"
        return {"Cache-Status": status, "Age": str(int(match.age_seconds))}
    return {"Cache-Status": f"ragherd; fwd={_forwarded(answered, control)}{'; stored' if answered.stored else ''}"}


def _forwarded(answered: Answered, control: CacheControl) -> str:
    """Why the cache did not answer, in RFC 9211's words."""
    if not control.reads:
        return "request"
    return "miss" if answered.status is CacheStatus.MISS else "bypass"
