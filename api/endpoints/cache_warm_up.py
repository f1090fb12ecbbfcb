"""Warm-ups of the cache: questions that are answered before anybody asks them."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints

from api.endpoints.access import DEFAULT_TENANT
from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.description import body_of
from api.endpoints.json_body import json_of
from api.endpoints.options import Options
from api.endpoints.query import Name, Question
from api.endpoints.times import rfc3339
from api.endpoints.validation import IsText, IsWhole, StrictBody, validated
from api.endpoints.worker_state import WorkerState, worker_state
from api.errors import ServiceUnavailable
from api.ports.warm_ups import WarmUpProgress
from api.query.warm_question import WarmQuestion
from api.query.warm_ups import WarmUps

MOST: Final = 10_000
MOST_CONTAINERS: Final = 3 * MOST
"""Lists and objects: a question is an object, with its options and their `stop`."""
PATH: Final = "/api/semantic-cache/warm"
JSON_LINES: Final = ("application/jsonl", "application/x-ndjson", "application/ndjson", "application/x-jsonlines")
Answer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000), IsText]

router = APIRouter(route_class=CheckedRoute, prefix=PATH, tags=["semantic cache"])


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


@router.post("", status_code=202, summary="Warm the cache up", openapi_extra=_BODY)
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
    response.headers["Location"] = f"{PATH}/{progress.job}"
    return _document(progress)


@router.get("/{job}", summary="How far a warm-up is")
@needs("admin")
async def progress(request: Request, job: str) -> dict[str, Any]:
    """The same from every worker, until an hour after its end."""
    return _document(await _admitted(request)[1].progress(job))


@router.delete("/{job}", summary="Cancel a warm-up")
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
