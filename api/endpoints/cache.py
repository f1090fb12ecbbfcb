"""The semantic cache, for operators: its figures, and taking answers back.

POST /api/semantic-cache/explain: why a question would be a hit, or not.

Warm-ups of the cache: questions that are answered before anybody asks them.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.checked_route import CheckedRoute, JsonRoute, needs
from api.endpoints.description import body_of
from api.endpoints.fields import rfc3339
from api.endpoints.query import Name, QueryIn, Question, to_query
from api.endpoints.validation import IsText, IsWhole, Options, StrictBody, json_of, refused, validated
from api.endpoints.worker_state import WorkerState, worker_state
from api.errors import InvalidRequest, ServiceUnavailable
from api.ports.cache import WarmUpProgress
from api.query.candidates import Fate
from api.query.explain import Explained, Explanation
from api.query.invalidate import Invalidation, InvalidationKind
from api.query.warm_up import WarmQuestion, WarmUps
from api.values import CacheMatch

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


explain_router = APIRouter(tags=["semantic cache"], route_class=JsonRoute)


@explain_router.post("/api/semantic-cache/explain", summary="Why a question would be a hit, or not")
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


MOST: Final = 10_000
MOST_CONTAINERS: Final = 3 * MOST
"""Lists and objects: a question is an object, with its options and their `stop`."""
WARM_UP_PATH: Final = "/api/semantic-cache/warm"
JSON_LINES: Final = ("application/jsonl", "application/x-ndjson", "application/ndjson", "application/x-jsonlines")
Answer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000), IsText]

warm_up_router = APIRouter(route_class=CheckedRoute, prefix=WARM_UP_PATH, tags=["semantic cache"])


class WarmQuestionIn(StrictBody):
    """A question, and its answer where it is known."""

    question: Question
    answer: Answer | None = None
    model: Name | None = None
    tenant: Name | None = None
    top_k: Annotated[int, Field(ge=0, le=20), IsWhole] = 4
    options: Options = Field(default_factory=Options)


class WarmUpIn(StrictBody):
    """Questions, each alone or with more; and what holds for all that do not say otherwise."""

    questions: Annotated[list[Any], Field(min_length=1, max_length=MOST, fail_fast=True)] = Field(
        description="Each a string, or an object: question, answer, model, tenant, top_k, options."
    )
    model: Name | None = None
    tenant: Name | None = None


class WarmUpBody(WarmUpIn):
    """The same, for the API's description: questions are validated one by one, each beside its number."""

    questions: Annotated[list[Question | WarmQuestionIn], Field(min_length=1, max_length=MOST)]


_EXAMPLE: Final = "What is the capital of France?"
_BODY: Final = body_of(WarmUpBody, {"questions": [_EXAMPLE]})


@warm_up_router.post("", status_code=202, summary="Warm the cache up", openapi_extra=_BODY)
@needs("admin")
async def begin(request: Request, response: Response) -> dict[str, Any]:
    """Begins it and says where its progress is. Questions that are cached and fresh are left alone.

    As JSON Lines (`application/jsonl`, `application/x-ndjson`) the body is one question a line.
    """
    state, warm_ups = _admitted(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Ten thousand questions take a while to check: the loop goes on meanwhile.
    questions = await asyncio.to_thread(_read, await request.body(), kind in JSON_LINES, state.default_model)
    progress = await warm_ups.begin(questions)
    response.headers["Location"] = f"{WARM_UP_PATH}/{progress.job}"
    return _document(progress)


@warm_up_router.get("/{job}", summary="How far a warm-up is")
@needs("admin")
async def progress(request: Request, job: str) -> dict[str, Any]:
    """The same from every worker, until an hour after its end."""
    return _document(await _admitted(request)[1].progress(job))


@warm_up_router.delete("/{job}", summary="Cancel a warm-up")
@needs("admin")
async def cancel(request: Request, job: str) -> dict[str, Any]:
    """Whichever worker has it. What is cached stays."""
    return _document(await _admitted(request)[1].cancel(job))


def _admitted(request: Request) -> tuple[WorkerState, WarmUps]:
    state = worker_state(request)
    if state.warm_ups is None:
        raise ServiceUnavailable("The semantic cache is switched off (SEMANTIC_CACHE_ENABLED).")
    return state, state.warm_ups


def _read(body: bytes, by_line: bool, default_model: str) -> list[WarmQuestion]:
    asked = validated(WarmUpIn, {"questions": _lines(body)} if by_line else json_of(body, "The body", MOST_CONTAINERS))
    return [_question(number, raw, asked, default_model) for number, raw in enumerate(asked.questions)]


def _lines(body: bytes) -> list[Any]:
    """One more than there may be at most: that is found out by who validates them."""
    lines = ((number, line) for number, line in enumerate(body.splitlines(), start=1) if line.strip())
    return [json_of(line, f"Line {number}") for number, line in islice(lines, MOST + 1)]


def _question(number: int, raw: Any, asked: WarmUpIn, default_model: str) -> WarmQuestion:
    fields = {"question": raw} if isinstance(raw, str) else raw
    given = validated(WarmQuestionIn, fields, f"questions.{number}")
    return WarmQuestion(
        number=number,
        question=given.question,
        tenant=given.tenant or asked.tenant or DEFAULT_TENANT,
        model=given.model or asked.model or default_model,
        top_k=given.top_k,
        options=given.options.model_dump(exclude_none=True),
        answer=given.answer,
    )


def _document(progress: WarmUpProgress) -> dict[str, Any]:
    return {
        "id": progress.job,
        "status": progress.status,
        "total": progress.total,
        "done": progress.done,
        "generated": progress.generated,
        "stored": progress.stored,
        "skipped": progress.skipped,
        "failed": progress.failed,
        "errors": progress.errors,
        "started": rfc3339(progress.started_ms),
        "ended": rfc3339(progress.ended_ms) if progress.ended_ms is not None else None,
        "by": progress.by,
    }
