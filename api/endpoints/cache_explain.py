"""POST /api/semantic-cache/explain: why a question would be a hit, or not."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.endpoints.checked_route import JsonRoute, needs
from api.endpoints.query import QueryIn, to_query
from api.endpoints.worker_state import worker_state
from api.model import CacheMatch
from api.query.candidates import Fate
from api.query.explain import Explained, Explanation

router = APIRouter(tags=["semantic cache"], route_class=JsonRoute)


@router.post("/api/semantic-cache/explain", summary="Why a question would be a hit, or not")
@needs("user")
async def explain(body: QueryIn, request: Request) -> dict[str, Any]:
    """Takes what POST /query takes, and changes nothing. A tenant's key sees that tenant's questions only."""
    explainer = worker_state(request).explainer
    query = to_query(body, request)
    explanation = await explainer.explain(query)
    return {
        "question": query.question,
        "tenant": query.tenant,
        "threshold": explainer.policy.threshold,
        **_explanation(explanation),
    }


def _explanation(explanation: Explanation) -> dict[str, Any]:
    place = explanation.place
    exact = explanation.exact
    nearest = exact or next((one.candidate.match for one in explanation.candidates), None)
    return {
        "hit": explanation.decision in {"exact_hit", "semantic_hit"},
        "decision": explanation.decision,
        "reason": explanation.reason,
        "normalised": explanation.normalised,
        "scope": place.scope,
        "digest": place.digest,
        "embedder": {"name": place.embedder.name, "dimension": place.embedder.dimension},
        "unread": list(explanation.unread),
        "foreign_language": explanation.language or None,
        "nearest": None if nearest is None else nearest.answer.entry,
        "similarity": None if nearest is None else round(nearest.similarity, 6),
        "exact": None if exact is None else {**_entry(exact), "verdict": explanation.exact_fate},
        "candidates": [_candidate(one) for one in explanation.candidates],
    }


def _candidate(explained: Explained) -> dict[str, Any]:
    match, fate = explained.candidate.match, explained.candidate.fate
    return {
        **_entry(match),
        "similarity": round(match.similarity, 6),
        "verdict": fate,
        "would_serve": fate in {Fate.FRESH, Fate.STALE},
        "guards": [{"guard": one.guard, "agrees": one.agrees, "detail": one.detail} for one in explained.guards],
    }


def _entry(match: CacheMatch) -> dict[str, Any]:
    return {
        "entry": match.answer.entry,
        "question": match.answer.question,
        "age_seconds": match.age_seconds,
        "ttl_seconds": match.ttl_seconds,
    }
