"""How right the cached answers are: users judge single answers, operators read the false-hit rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.endpoints.health import charge_request, worker_state
from api.endpoints.query import Name
from api.endpoints.routes import CheckedRoute, JsonRoute, needs
from api.endpoints.validation import IsText, StrictBody, rfc3339
from api.errors import NotFound
from api.ports.answer_cache import Vote
from api.ports.answer_quality import FalseHitRate, LabelSource, QualityEvent, QualityState, SimilarityBand

feedback_router = APIRouter(tags=["query"], route_class=JsonRoute)
router = APIRouter(route_class=CheckedRoute, prefix="/api/semantic-cache", tags=["semantic cache"])

RequestId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/+=-]+$", max_length=200)]
Comment = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000), IsText]


class FeedbackIn(StrictBody):
    """A verdict on one answer."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"request_id": "5f0c1d1c2f3b4f6a8d7e9c0b1a2d3e4f", "verdict": "bad"}}
    )

    request_id: RequestId = Field(description="`request_id` of the answer, or its header `X-Request-ID`.")
    verdict: Literal["good", "bad"]
    comment: Comment | None = Field(None, description="Kept with a quarantined answer, for operators.")
    tenant: Name | None = Field(None, description="As in POST /query.")


class FeedbackOut(BaseModel):
    """The vote counts."""

    recorded: Literal[True] = True


@feedback_router.post("/feedback", status_code=202, summary="Judge an answer")
@needs("user", "request")
async def feedback(body: FeedbackIn, request: Request) -> FeedbackOut:
    """A key has one vote on an answer; the latest counts. After `bad` no worker serves the answer from the cache.

    `good` from the same key puts it back. Answers can be judged for `FEEDBACK_TTL`.
    """
    state = worker_state(request)
    tenant = state.access.tenant(request, body.tenant)
    await charge_request(request)
    vote = Vote(body.request_id, body.verdict, state.access.voter(request, tenant), body.comment or "")
    of_any_tenant = body.tenant is None and state.access.sees_all_tenants(request)
    if await state.feedback.vote(tenant, vote, of_any_tenant=of_any_tenant) is None:
        raise NotFound("No answer with this request ID can be judged: it is unknown, too old, or another tenant's.")
    return FeedbackOut()


@router.get("/quality", summary="Show how often cached answers are wrong")
@needs("operator")
async def quality(request: Request) -> dict[str, Any]:
    """The false-hit rate with its 95 % interval, and what the fleet does about it. Only admins see tenants."""
    state = worker_state(request)
    known = state.quality()
    shown = _quality(known)
    if state.access.is_admin(request):
        shown["by_tenant"] = _rates(known.by_tenant)
        if known.tenants:
            shown["tightened_tenants"] = {name: known.level_of(name) for name in sorted(known.tenants)}
        shown["history"] = [_event(event) for event in reversed(known.history)]
    return shown


def _quality(state: QualityState) -> dict[str, Any]:
    comparator, _, version = state.versions.comparator.rpartition("-")
    return {
        "policy": state.policy,
        "threshold": state.threshold,
        "target_error": state.target_error,
        "false_hit_rate": state.rate.figures(),
        "would_serve": state.would_serve.figures(),
        "by_kind": _rates(state.by_kind),
        "by_policy": _rates(state.by_policy),
        **({"by_variant": _rates(state.by_variant)} if state.by_variant else {}),
        "by_similarity": [_band(band) for band in state.by_similarity],
        "labels": {source: state.labels.get(source, 0) for source in get_args(LabelSource)},
        "unsure": state.unsure,
        "comparator": {"name": comparator, "version": version},
        "embedder": state.versions.embedder or None,
        "verifier": state.versions.verifier or None,
        "learned": state.learned,
        "tightened": state.tightened,
        "level": state.level,
        "at": rfc3339(state.at_ms) if state.epoch else None,
        "history": [_event(event) for event in reversed(state.history) if not event.tenant],
    }


def _rates(rates: Mapping[str, FalseHitRate]) -> dict[str, Any]:
    return {name: rate.figures() for name, rate in rates.items()}


def _band(band: SimilarityBand) -> dict[str, Any]:
    return {
        "from": band.low_end,
        "to": band.high_end,
        "labels": band.labels,
        "wrong": band.wrong,
        "low": round(band.rate.low, 6),
        "high": round(band.rate.high, 6),
    }


def _event(event: QualityEvent) -> dict[str, Any]:
    return {
        "at": rfc3339(event.at_ms),
        "change": event.change,
        "level": event.level,
        "false_hit_rate": event.rate.figures(),
        "reason": event.reason or None,
        **({"tenant": event.tenant} if event.tenant else {}),
    }
