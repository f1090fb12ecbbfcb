"""`ragherd eval`: how well a running service finds, cites and answers, on questions whose answers are known."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from api.errors import SettingsError, StoreUnavailable
from api.knowledge.quotes import closest
from ragherd.evaluation_cases import DEMO, Case, draft_prompt, drafted, read_cases, unknown_documents
from ragherd.evaluation_report import (
    MEASURES,
    compared,
    is_evaluation,
    is_met,
    metrics_of,
    print_comparison,
    print_evaluation,
    worse,
    write_evaluation,
)
from ragherd.evaluation_run import Asker, Asking, Evaluation, NotAnswered, opened_asker
from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.quality_samples import Unreadable
from ragherd.service_client import AsJson, ServiceClient, Url, clean, connected, print_document

MAKE, CASES, COMPARE = "make", "cases", "compare"
MOST_DOCUMENTS: Final = 10_000
PAGE: Final = 500
LEAST_CHARACTERS: Final = 40
"""Of a passage that a question can be drafted from."""
DRAFT_OPTIONS: Final = {"temperature": 0.3, "num_predict": 512}


def eval(  # noqa: A001 - the command's name
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="FILE with questions (CSV, JSON Lines); or `make`, `cases`, or `compare FIRST SECOND`."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Questions about the pages that `ragherd dev` stores. Default without FILE.")
    ] = False,
    retrieval: Annotated[bool, typer.Option("--retrieval", help="Measure retrieval only. No model answers.")] = False,
    top_k: Annotated[int | None, typer.Option(min=1, max=20, help="Passages for each question. Default: 4.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the answers or the drafts. Default: LLM_MODEL.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Model that judges sentences about which the rules are unsure.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant that asks. A user's key fixes it.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Use only documents with one of these tags. Can be repeated.")
    ] = None,
    unconfirmed: Annotated[bool, typer.Option("--unconfirmed", help="Ask drafts too.")] = False,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="MEASURE=VALUE", help="Exit with 1 below this value. Can be repeated."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="eval.json of an earlier run. Exit with 1 if a measure is certainly lower.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="`make`: questions to draft.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Questions at a time.")] = 2,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds for each question.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals, and of the passages for drafts.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for eval.json and eval.html.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a running service finds, cites and answers, on questions whose answers are known.

    A question names documents, passages or an answer that is expected, or has `answerable` false. Requests neither read
    nor fill the cache. `make` drafts questions from the stored documents, and `cases` from the answers that users
    judged bad (from Redis, REDIS_URL). Both print JSON Lines for a person to complete and confirm. `compare` compares
    two saved runs.

    The exit status is 1 if a question got no reply, a --min is not met, or a measure is certainly lower than in the
    baseline.
    """
    given = list(arguments or ())
    asking = Asking(top_k, model, tenant, tuple(tag or ()), retrieval, judge, timeout, concurrency)
    action = given[0] if given else ""
    if action == COMPARE and len(given) == 3:
        _compare(given[1], given[2], seed, as_json=as_json)
    elif action in (MAKE, CASES) and len(given) == 1:
        found = _drafts(url, asking, count, seed) if action == MAKE else _judged_bad(count)
        _print_lines(found, as_json=as_json)
    elif len(given) > 1 or action in (COMPARE, *MEASURES) or (given and demo):
        raise exit_with("give one FILE, --demo, make, cases, or compare FIRST SECOND", USAGE_ERROR)
    else:
        limits, before = _limits(least or ()), None if baseline is None else _saved(str(baseline))
        file = Path(action) if given else DEMO
        cases, drafts = _cases(file, unconfirmed=unconfirmed)
        if before is not None and not {one["question"] for one in before["cases"]} & {one.question for one in cases}:
            raise exit_with(f"--baseline {baseline}: has none of the questions of {file.name}", USAGE_ERROR)
        found_run = _evaluated(url, cases, asking, seed)
        known = {**found_run, "file": file.name, "drafts": drafts, "seed": seed}
        _finish(known, limits, before, out, as_json=as_json)


# -- Evaluate ----------------------------------------------------------------------------------------------------------


def _cases(file: Path, *, unconfirmed: bool) -> tuple[list[Case], int]:
    try:
        return read_cases(file, unconfirmed=unconfirmed)
    except Unreadable as error:
        raise exit_with(str(error), USAGE_ERROR) from None


def _limits(given: Sequence[str]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for one in given:
        name, _, said = one.partition("=")
        try:
            limits[name] = float(said)
        except ValueError:
            limits[name] = math.nan
        if name not in MEASURES or not 0 <= limits[name] <= 1:
            raise exit_with(f"--min {one}: must be MEASURE=0 to 1, of {', '.join(MEASURES)}", USAGE_ERROR)
    return limits


def _evaluated(url: str | None, cases: Sequence[Case], asking: Asking, seed: int) -> dict[str, Any]:
    with connected(url) as service:
        version, shown_url = service.health().get("version"), service.url
        missing = _missing(service, cases, asking)
    run = _ran(url, cases, asking)
    if run.ended is not None:
        code = UNREACHABLE if run.ended.unreachable else FAILED
        raise exit_with(f"{shown_url}: {run.ended}", code)
    return {
        "url": shown_url,
        "version": version,
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "k": asking.k,
        "retrieval_only": asking.retrieval_only,
        "judge": asking.judge,
        "errors": sum(bool(one.error) for one in run.results),
        "missing_documents": missing,
        "metrics": metrics_of(run.results, seed),
        "cases": [one.document() for one in run.results],
    }


def _missing(service: ServiceClient, cases: Sequence[Case], asking: Asking) -> list[str]:
    """Returns the expected documents that the service does not have: a question that names one cannot pass."""
    expected = dict.fromkeys(one for case in cases for one in case.documents)
    if not expected:
        return []
    stored = list(_stored(service, asking.tenant, None))
    if len(stored) >= MOST_DOCUMENTS:
        return []
    return unknown_documents(expected, stored)


def _stored(service: ServiceClient, tenant: str | None, tag: str | None) -> Iterator[Mapping[str, Any]]:
    """Yields the documents of a tenant, at most `MOST_DOCUMENTS`."""
    cursor: str | None = None
    for _ in range(MOST_DOCUMENTS // PAGE):
        page = service.get("/documents", field="documents", tenant=tenant, tag=tag, cursor=cursor, limit=PAGE)
        yield from page["documents"]
        cursor = page["cursor"]
        if cursor is None:
            return


def _ran(url: str | None, cases: Sequence[Case], asking: Asking) -> Evaluation:
    async def run() -> Evaluation:
        async with opened_asker(url, asking) as asker:
            evaluation = Evaluation(cases, asker, asking)
            with _progress("questions", len(cases)) as progress:
                await evaluation.run(lambda: progress.advance(progress.task_ids[0]))
            return evaluation

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        raise exit_with("interrupted", INTERRUPTED) from None


def _progress(what: str, total: int) -> Progress:
    """Returns a progress bar on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    progress.add_task(what, total=total)
    return progress


def _finish(
    found: dict[str, Any], limits: Mapping[str, float], before: Any, out: Path | None, *, as_json: bool
) -> None:
    values = {name: one["value"] for name, one in found["metrics"].items() if one}
    found["thresholds"] = [
        {"name": name, "least": limit, "value": values.get(name), "met": values.get(name, -1.0) >= limit}
        for name, limit in limits.items()
    ]
    found["baseline"] = None if before is None else compared(before, found, found["seed"])
    found["ok"] = is_met(found)
    written: list[Path] = []
    if out is not None:
        try:
            written = write_evaluation(found, out)
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None
    if as_json:
        print_document(found)
    else:
        print_evaluation(found)
        if written:
            typer.echo(f"Wrote {' and '.join(map(str, written))}")
    if not found["ok"]:
        raise typer.Exit(FAILED)


# -- Compare -----------------------------------------------------------------------------------------------------------


def _saved(file: str) -> Any:
    try:
        found = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise exit_with(f"{file}: {reason}", USAGE_ERROR) from None
    if not is_evaluation(found):
        raise exit_with(f"{file}: not an evaluation of ragherd eval --json or --out", USAGE_ERROR)
    return found


def _compare(first: str, second: str, seed: int, *, as_json: bool) -> None:
    changes = compared(_saved(first), _saved(second), seed)
    if not any(changes.values()):
        raise exit_with("the two runs have no question in common", USAGE_ERROR)
    if as_json:
        print_document({"first": first, "second": second, "measures": changes})
    else:
        print_comparison(changes, Path(first).name, Path(second).name)
    if worse({"baseline": changes}):
        raise typer.Exit(FAILED)


# -- Draft -------------------------------------------------------------------------------------------------------------


def _print_lines(records: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_document({"cases": records})
        return
    for one in records:
        typer.echo(json.dumps(one, ensure_ascii=False))
    drafts = f"{len(records):,} draft{'' if len(records) == 1 else 's'}"
    typer.echo(f"{drafts}: check and complete each, then set confirmed to true", err=True)


def _drafts(url: str | None, asking: Asking, count: int, seed: int) -> list[Mapping[str, Any]]:
    with connected(url) as service:
        passages = list(_passages(service, asking, count, seed))
    if not passages:
        raise exit_with(f"{service.url}: no stored document has a passage to draft a question from")
    try:
        found, failed = asyncio.run(_drafted(url, asking, passages))
    except NotAnswered as error:
        raise exit_with(str(error), UNREACHABLE if error.unreachable else FAILED) from None
    except KeyboardInterrupt:
        raise exit_with("interrupted", INTERRUPTED) from None
    for reason in failed[:3]:
        typer.echo(f"ragherd: {clean(reason)}", err=True)
    if not found:
        raise exit_with("no question was drafted")
    return found


def _passages(service: ServiceClient, asking: Asking, count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yields documents with one of their passages, at random. Each document once before any a second time."""
    chosen = random.Random(seed)  # noqa: S311 - not a secret
    tags: Sequence[str | None] = asking.tags or (None,)
    stored = {one["id"]: one for tag in tags for one in _stored(service, asking.tenant, tag) if one["chunks"]}
    documents = list(stored.values())
    chosen.shuffle(documents)
    for place in range(count if documents else 0):
        document = documents[place % len(documents)]
        offset = chosen.randrange(document["chunks"])
        whole = service.get(
            f"/documents/{document['id']}", field="passages", tenant=asking.tenant, offset=offset, limit=1
        )
        if whole["passages"] and len(whole["passages"][0]["text"]) >= LEAST_CHARACTERS:
            yield document, whole["passages"][0]


async def _drafted(
    url: str | None, asking: Asking, passages: Sequence[tuple[Any, Any]]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Returns the drafts, and why passages have none. Raises `NotAnswered` if every further request would fail."""
    found: dict[str, Mapping[str, Any]] = {}
    failed: list[str] = []
    waiting = iter(passages)

    async def work(asker: Asker, progress: Progress) -> None:
        for document, passage in waiting:
            try:
                reply = await asker.completed(draft_prompt(passage["text"]), asking.model, DRAFT_OPTIONS)
            except NotAnswered as error:
                if error.ends:
                    raise
                failed.append(str(error))
                continue
            finally:
                progress.advance(progress.task_ids[0])
            question = drafted(reply)
            if question is None:
                failed.append(f"{document['title']}: the model wrote no question")
            else:
                found.setdefault(question, _draft(question, document, passage))

    async with opened_asker(url, asking) as asker:
        with _progress("drafts", len(passages)) as progress:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(asking.concurrency):
                        group.create_task(work(asker, progress))
            except* NotAnswered as errors:
                ended = errors.exceptions[0]
                raise ended from None
    return list(found.values()), failed


def _draft(question: str, document: Mapping[str, Any], passage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a case. Its passage is the sentence that is closest to the question, which survives another chunking."""
    quote = closest(question, passage["text"])
    return {
        "question": question,
        "documents": [document["source"] or document["id"]],
        "passages": [quote] if quote else [],
        "confirmed": False,
        "title": document["title"],
        "chunk": passage["chunk"],
    }


# -- Votes -------------------------------------------------------------------------------------------------------------


def _judged_bad(count: int) -> list[Mapping[str, Any]]:
    """Returns the answers that users judged bad, as far as Redis keeps them: the cached ones, until they expire."""
    from api.settings import load_settings
    from api.wiring.backup import opened_quarantine

    async def read() -> list[Mapping[str, Any]]:
        async with opened_quarantine(load_settings()) as quarantined:
            return [
                {
                    "question": one.question,
                    "documents": [],
                    "confirmed": False,
                    "comment": one.comment,
                    "bad_answer": one.answer,
                    "asked": "the same" if one.is_asked else "a similar question, whose words are not kept",
                    "answered_from": list(one.sources),
                    "request_id": one.request,
                    "tenant": one.tenant,
                }
                for one in await quarantined(count)
            ]

    try:
        return asyncio.run(read())
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except StoreUnavailable as error:
        raise exit_with(str(error)) from None
