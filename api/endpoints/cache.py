"""The semantic cache, for operators: its figures, and taking answers back."""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.query import Name, Question
from api.endpoints.validation import IsText, refused
from api.endpoints.worker_state import worker_state
from api.errors import InvalidRequest
from api.query.invalidate import Invalidation, InvalidationKind

PATH: Final = "/api/semantic-cache"
KINDS: Final[tuple[InvalidationKind, ...]] = get_args(InvalidationKind)
WITH_QUESTION: Final = ("similarity", "model")

router = APIRouter(route_class=CheckedRoute, prefix=PATH, tags=["semantic cache"])

Key = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000), IsText]


@router.get("/metrics", summary="The cache, fleet-wide")
@needs("operator")
async def metrics(request: Request) -> dict[str, Any]:
    """Counts since the statistics began; the last known while Redis is down."""
    return await worker_state(request).cache.report()


class InvalidationIn(BaseModel):
    """What is to be deleted: exactly one of the kinds. A name that is not known is refused, since it would widen it."""

    model_config = ConfigDict(extra="forbid")

    question: Question | None = Field(None, description="This question, in every scope; with its neighbourhood below.")
    similarity: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="With `question`: also all questions with at least this cosine to it."
    )
    model: Name | None = Field(None, description="With `question`: answers of this model only.")
    tenant: Name | None = Field(None, description="All of a tenant's; with `question`: this tenant's only.")
    entry: Key | None = Field(None, description="A key, as `cache.entry` of an answer gives it.")
    source: Key | None = Field(None, description="The id of a document: all answers whose sources cite it.")
    all: bool = Field(default=False, description="Every answer.")
    dry_run: bool = Field(default=False, description="Counts only.")

    def invalidation(self) -> Invalidation:
        """Raises `InvalidRequest` unless exactly one kind is asked for."""
        given: list[InvalidationKind] = [kind for kind in KINDS if getattr(self, kind) not in {None, False}]
        if self.question is not None and self.tenant is not None:
            given.remove("tenant")
        if len(given) != 1:
            found = f"given: {', '.join(given)}" if given else "none is given"
            raise InvalidRequest(f"Say what to delete by exactly one of {', '.join(KINDS)}=true; {found}.")
        for name in WITH_QUESTION:
            if self.question is None and getattr(self, name) is not None:
                raise refused(name, "goes with `question` only")
        return Invalidation(
            given[0], self.question, self.similarity, self.entry, self.source, self.tenant, model=self.model
        )


@router.delete("", summary="Delete cached answers, fleet-wide")
@needs("admin")
async def invalidate(request: Request, asked: Annotated[InvalidationIn, Query()]) -> dict[str, Any]:
    """By question, entry, source, tenant, or all of them. No worker serves them once the response is there."""
    state = worker_state(request)
    if len(request.query_params.multi_items()) > len(request.query_params):
        raise InvalidRequest("A parameter is given twice.")
    swept = await state.invalidator.invalidate(asked.invalidation(), dry_run=asked.dry_run)
    return {"matched": swept.matched, "deleted": swept.deleted, "dry_run": asked.dry_run}
