"""An answer as POST /query gives it: the document, and the headers that tell of the cache."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from api.model import CacheMatch, CacheStatus
from api.query.answered import Answered, Opening
from api.query.cache_control import CacheControl


class SourceOut(BaseModel):
    """A passage that the answer is grounded in."""

    document_id: str
    title: str
    chunk: int
    text: str
    score: float
    source: str | None
    version: str | None
    revision: int


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


def document(answered: Answered, request_id: str) -> dict[str, Any]:
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


def cache_headers(answer: Opening | Answered, control: CacheControl) -> dict[str, str]:
    """`Cache-Status` (RFC 9211) and `Age` (RFC 9111). Whether it was stored is not known of an opening."""
    if answer.match is not None:
        return {"Cache-Status": _hit(answer.status, answer.match), "Age": str(int(answer.match.age_seconds))}
    stored = "; stored" if isinstance(answer, Answered) and answer.stored else ""
    collapsed = "; collapsed" if answer.status is CacheStatus.COALESCED else ""
    return {"Cache-Status": f"ragherd; fwd={_forwarded(answer.status, control)}{stored}{collapsed}"}


def _hit(status: CacheStatus, match: CacheMatch) -> str:
    if status is CacheStatus.STALE:
        return "ragherd; hit; detail=stale"
    return f"ragherd; hit; ttl={match.ttl_seconds}; detail={match.kind}"


def _forwarded(status: CacheStatus, control: CacheControl) -> str:
    """Why the cache did not answer, in RFC 9211's words."""
    if not control.reads:
        return "request"
    return "bypass" if status is CacheStatus.BYPASS else "miss"
