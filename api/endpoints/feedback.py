"""POST /feedback: a user judges an answer; a bad one is not served again."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.endpoints.middleware import JsonRoute, needs
from api.endpoints.query import Name
from api.endpoints.validation import IsText, StrictBody
from api.endpoints.worker_state import worker_state
from api.errors import NotFound
from api.ports.answer_cache import Vote

router = APIRouter(tags=["query"], route_class=JsonRoute)

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


@router.post("/feedback", status_code=202, summary="Judge an answer")
@needs("user")
async def feedback(body: FeedbackIn, request: Request) -> FeedbackOut:
    """A key has one vote on an answer; the latest counts. After `bad` no worker serves the answer from the cache.

    `good` from the same key puts it back. Answers can be judged for `FEEDBACK_TTL`.
    """
    state = worker_state(request)
    tenant = state.access.tenant(request, body.tenant)
    vote = Vote(body.request_id, body.verdict, state.access.voter(request, tenant), body.comment or "")
    of_any_tenant = body.tenant is None and state.access.sees_all_tenants(request)
    if await state.feedback.vote(tenant, vote, of_any_tenant=of_any_tenant) is None:
        raise NotFound("No answer with this request ID can be judged: it is unknown, too old, or another tenant's.")
    return FeedbackOut()
