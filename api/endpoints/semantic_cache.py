"""Endpoints of the semantic cache: figures, deletion, explanations and warm-ups."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.audit import audited
from api.endpoints.description import body_of
from api.endpoints.health import AppState, Moment, charge_request, worker_state
from api.endpoints.query import Name, QueryIn, Question, build_query
from api.endpoints.routes import CheckedRoute, JsonRoute, needs
from api.endpoints.validation import IsInteger, IsText, Options, StrictBody, json_of, refused, rfc3339, validated
from api.errors import InvalidRequest, ServiceUnavailable
from api.ports.answer_cache import Invalidation, InvalidationKind, WarmUpProgress
from api.ports.answer_quality import PolicyDecision, PolicyName, PolicyOutcome, Verdict
from api.query.candidates import USABLE
from api.query.explain import Explained, Explanation
from api.query.warm_up import WarmQuestion, WarmUps
from api.values import CacheMatch

PATH: Final = "/api/semantic-cache"
KINDS: Final[tuple[InvalidationKind, ...]] = get_args(InvalidationKind)
NAMED: Final = {
    "entry": re.compile(r"[\w:{}-]{1,120}:[0-9a-f]{32}"),
    "source": re.compile(r"[0-9a-f]{24}"),
    "release": re.compile(r"\d+\.\d[\w.+-]{0,30}"),
}
"""What the audit log shows of a deletion, and its form: anything else may be a text in the wrong place."""
WITH_QUESTION: Final = ("similarity", "model")

router = APIRouter(route_class=CheckedRoute, prefix=PATH, tags=["semantic cache"])

Key = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000), IsText]


@router.get("/metrics", summary="Show the figures of the fleet's cache")
@needs("operator")
async def metrics(request: Request) -> dict[str, Any]:
    """Counts since the statistics began. While Redis is down, the last known counts."""
    return await worker_state(request).cache_report()


class InvalidationIn(BaseModel):
    """The answers to delete, by exactly one parameter. Ignoring an unknown one could delete more, so it is refused."""

    model_config = ConfigDict(extra="forbid")

    question: Question | None = Field(None, description="Answers to this question, in every scope.")
    similarity: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="With `question`: also answers to questions with at least this cosine to it."
    )
    model: Name | None = Field(None, description="With `question`: only answers of this model.")
    tenant: Name | None = Field(None, description="All answers of a tenant; with `question` or `tag`: only its.")
    entry: Key | None = Field(None, description="One entry, by its key (`cache.entry` of an answer).")
    source: Key | None = Field(None, description="All answers whose sources cite the document with this ID.")
    tag: Name | None = Field(None, description="All answers that cite a document with this tag; see `tenant`.")
    release: Key | None = Field(None, description="All answers that this release of Ragherd stored, such as `0.2.0`.")
    since: Moment | None = Field(None, description="All answers that were stored at this time or later.")
    all: bool = Field(default=False, description="All answers.")
    dry_run: bool = Field(default=False, description="Only count the answers; delete nothing.")

    def invalidation(self) -> Invalidation:
        """Raises `InvalidRequest` unless exactly one kind of deletion is requested."""
        given: list[InvalidationKind] = [
            kind for kind in KINDS if (value := getattr(self, kind)) is not None and value is not False
        ]
        if (self.question is not None or self.tag is not None) and self.tenant is not None:
            given.remove("tenant")
        if len(given) != 1:
            found = f"received {', '.join(given)}" if given else "received none"
            raise InvalidRequest(f"Set exactly one of {', '.join(KINDS)}=true; {found}.")
        for name in WITH_QUESTION:
            if self.question is None and getattr(self, name) is not None:
                raise refused(name, "is valid only with `question`")
        tenant = self.tenant or (DEFAULT_TENANT if self.tag is not None else None)
        return Invalidation(given[0], **{**self.model_dump(exclude={"all", "dry_run"}), "tenant": tenant})


@router.delete("", summary="Delete cached answers in the whole fleet")
@needs("admin")
async def invalidate(request: Request, wanted: Annotated[InvalidationIn, Query()]) -> dict[str, Any]:
    """Delete by question, entry, source, tag, release, time or tenant, or delete all.

    After the response no worker serves these answers.
    """
    state = worker_state(request)
    if len(request.query_params.multi_items()) > len(request.query_params):
        raise InvalidRequest("A parameter appears twice.")
    selected = wanted.invalidation()
    if not wanted.dry_run:
        about = {
            name: getattr(wanted, name) for name, form in NAMED.items() if form.fullmatch(getattr(wanted, name) or "")
        }
        await audited(
            request, "cache.invalidate", kind=selected.kind, tenant=selected.tenant, since=wanted.since, **about
        )
    swept = await state.invalidator.invalidate(selected, dry_run=wanted.dry_run)
    return {"matched": swept.matched, "deleted": swept.deleted, "dry_run": wanted.dry_run}


explain_router = APIRouter(tags=["semantic cache"], route_class=JsonRoute)


@explain_router.post("/api/semantic-cache/explain", summary="Explain why a question is a hit or a miss")
@needs("user", "request")
async def explain(body: QueryIn, request: Request) -> dict[str, Any]:
    """Takes the body of POST /query and changes nothing. A tenant's key sees only questions of that tenant."""
    state = worker_state(request)
    explainer, query = state.explainer, build_query(body, request, state)
    await charge_request(request)
    explanation = await explainer.explain(query)
    return {
        "question": query.question,
        "tenant": query.tenant,
        **explanation_document(explanation),
    }


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Returns the JSON of an explanation."""
    key = explanation.key
    exact = explanation.exact
    rules = explanation.rules
    nearest = exact or next((one.candidate.match for one in explanation.candidates), None)
    return {
        "policy": rules.policy,
        "threshold": round(rules.threshold, 6),
        "level": rules.level,
        "learned": rules.model is not None,
        "variant": explanation.variant or None,
        "hit": explanation.decision in {"exact_hit", "semantic_hit"},
        "decision": explanation.decision,
        "reason": explanation.reason,
        "normalised": explanation.normalised,
        "scope": key.scope,
        "digest": key.digest,
        "embedder": {"name": key.embedder.name, "dimension": key.embedder.dimension},
        "unread": list(explanation.unread),
        "foreign_language": explanation.language or None,
        "nearest": None if nearest is None else nearest.answer.entry,
        "similarity": None if nearest is None else round(nearest.similarity, 6),
        "exact": None if exact is None else _exact(explanation, exact),
        "candidates": [_candidate(one) for one in explanation.candidates],
        "policies": _policies(explanation),
    }


def _exact(explanation: Explanation, exact: CacheMatch) -> dict[str, Any]:
    return {**_entry(exact), "verdict": explanation.exact_fate, "labels": _labels(explanation.exact_labels)}


def _labels(labels: Mapping[str, int]) -> dict[str, int]:
    return {verdict.value: labels.get(verdict.value, 0) for verdict in Verdict}


def _policies(explanation: Explanation) -> dict[str, Any]:
    """The decision of each policy. All but `observe` serve the answer of the same question."""
    if explanation.exact is not None and explanation.exact_fate in USABLE:
        entry, served = explanation.exact.answer.entry, PolicyOutcome.SERVED
        outcomes = {name: PolicyOutcome.WOULD_SERVE if name is PolicyName.OBSERVE else served for name in PolicyName}
        return {name: _decided(PolicyDecision(name, outcome, 0), entry) for name, outcome in outcomes.items()}
    entries = [one.candidate.match.answer.entry for one in explanation.candidates]
    return {
        name: _decided(decided, None if decided.index is None else entries[decided.index])
        for name, decided in explanation.policies.items()
    }


def _decided(decided: PolicyDecision, entry: str | None) -> dict[str, Any]:
    return {
        "outcome": decided.outcome,
        "entry": entry,
        "reason": decided.reason or None,
        "error": None if decided.error is None else round(decided.error, 6),
        "limit": None if decided.limit is None else round(decided.limit, 6),
    }


def _candidate(explained: Explained) -> dict[str, Any]:
    match, fate = explained.candidate.match, explained.candidate.fate
    grounded, score = explained.grounded, explained.score
    return {
        **_entry(match),
        "similarity": round(match.similarity, 6),
        "verdict": fate,
        "would_serve": fate in USABLE,
        "guards": [{"guard": one.guard, "agrees": one.agrees, "detail": one.detail} for one in explained.guards],
        "grounded": None if grounded is None else {"agrees": grounded.agrees, "detail": grounded.detail},
        "verifier": None if score is None else {"score": round(score, 4), "verdict": explained.verified},
        "labels": _labels(explained.labels),
    }


def _entry(match: CacheMatch) -> dict[str, Any]:
    return {
        "entry": match.answer.entry,
        "question": match.answer.question,
        "age_seconds": match.age_seconds,
        "ttl_seconds": match.ttl_seconds,
    }


MAX_QUESTIONS: Final = 10_000
MAX_CONTAINERS: Final = 3 * MAX_QUESTIONS
"""Lists and objects in a body: a question is an object with its options and their `stop`."""
WARM_UP_PATH: Final = "/api/semantic-cache/warm"
JSON_LINES: Final = ("application/jsonl", "application/x-ndjson", "application/ndjson", "application/x-jsonlines")
Answer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000), IsText]

warm_up_router = APIRouter(route_class=CheckedRoute, prefix=WARM_UP_PATH, tags=["semantic cache"])


class WarmQuestionIn(StrictBody):
    """A question, with its answer if you know it."""

    question: Question
    answer: Answer | None = None
    model: Name | None = None
    tenant: Name | None = None
    top_k: Annotated[int, Field(ge=0, le=20), IsInteger] = 4
    options: Options = Field(default_factory=Options)


class WarmUpIn(StrictBody):
    """Questions, and the defaults for those that do not set a tenant or model."""

    questions: Annotated[list[Any], Field(min_length=1, max_length=MAX_QUESTIONS, fail_fast=True)] = Field(
        description="Strings, or objects with question, answer, model, tenant, top_k and options."
    )
    model: Name | None = None
    tenant: Name | None = None


class WarmUpBody(WarmUpIn):
    """The same for OpenAPI. The questions are validated one by one, so that errors name the question's number."""

    questions: Annotated[list[Question | WarmQuestionIn], Field(min_length=1, max_length=MAX_QUESTIONS)]


_EXAMPLE: Final = "What is the capital of France?"
_BODY: Final = body_of(WarmUpBody, {"questions": [_EXAMPLE]})


@warm_up_router.post("", status_code=202, summary="Warm up the cache", openapi_extra=_BODY)
@needs("admin")
async def begin(request: Request, response: Response) -> dict[str, Any]:
    """Start a warm-up. `Location` says where to see its progress. Questions with a fresh answer are skipped.

    As JSON Lines (`application/jsonl`, `application/x-ndjson`) the body is one question a line.
    """
    state, warm_ups = _admitted(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Validating 10,000 questions takes a while; a thread keeps the event loop free.
    questions = await asyncio.to_thread(_read, await request.body(), kind in JSON_LINES, state.default_model)
    await audited(request, "cache.warm-up", questions=len(questions))
    progress = await warm_ups.begin(questions)
    response.headers["Location"] = f"{WARM_UP_PATH}/{progress.job}"
    return _document(progress)


@warm_up_router.get("/{job}", summary="Show the progress of a warm-up")
@needs("admin")
async def progress(request: Request, job: str) -> dict[str, Any]:
    """Every worker shows it, until an hour after its end."""
    return _document(await _admitted(request)[1].progress(job))


@warm_up_router.delete("/{job}", summary="Cancel a warm-up")
@needs("admin")
async def cancel(request: Request, job: str) -> dict[str, Any]:
    """Works from every worker. Answers that are already cached stay."""
    _, warm_ups = _admitted(request)
    await audited(request, "cache.cancel-warm-up", job=job)
    return _document(await warm_ups.cancel(job))


def _admitted(request: Request) -> tuple[AppState, WarmUps]:
    state = worker_state(request)
    if state.warm_ups is None:
        raise ServiceUnavailable("The semantic cache is disabled (SEMANTIC_CACHE_ENABLED).")
    return state, state.warm_ups


def _read(body: bytes, by_line: bool, default_model: str) -> list[WarmQuestion]:
    defaults = validated(
        WarmUpIn, {"questions": _lines(body)} if by_line else json_of(body, "The body", MAX_CONTAINERS)
    )
    return [_question(number, raw, defaults, default_model) for number, raw in enumerate(defaults.questions)]


def _lines(body: bytes) -> list[Any]:
    """Returns the questions, at most one more than the limit: the validation then reports the excess."""
    lines = ((number, line) for number, line in enumerate(body.splitlines(), start=1) if line.strip())
    return [json_of(line, f"Line {number}") for number, line in islice(lines, MAX_QUESTIONS + 1)]


def _question(number: int, raw: Any, defaults: WarmUpIn, default_model: str) -> WarmQuestion:
    fields = {"question": raw} if isinstance(raw, str) else raw
    given = validated(WarmQuestionIn, fields, f"questions.{number}")
    return WarmQuestion(
        number=number,
        question=given.question,
        tenant=given.tenant or defaults.tenant or DEFAULT_TENANT,
        model=given.model or defaults.model or default_model,
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
