"""`ragherd warm` and `ragherd invalidate`: fill the semantic cache of a running service, or delete answers from it."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ragherd.exits import FAILED, INTERRUPTED, USAGE_ERROR, exit_with
from ragherd.service_client import AsJson, ServiceClient, Url, clean, confirm, connected, print_document

CACHE_PATH: Final = "/api/semantic-cache"
WARM_PATH: Final = f"{CACHE_PATH}/warm"
POLL_SECONDS: Final = 0.5
DELETE_SECONDS: Final = 60.0
STREAM: Final = "-"


def warm(
    file: Annotated[
        str, typer.Argument(help="Text file with a question on each line, or JSON Lines. - is standard input.")
    ],
    tenant: Annotated[str | None, typer.Option(help="Tenant of questions that name none.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of questions that name none.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all questions are done.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions in advance, so that the first caller gets a hit. Needs an admin key.

    A line of JSON Lines is a string, or an object with question and optionally answer, tenant, model, top_k and
    options. Questions with a fresh answer are skipped.
    """
    defaults = {name: value for name, value in (("tenant", tenant), ("model", model)) if value is not None}
    body = {"questions": read_questions(file), **defaults}
    with connected(url) as service:
        job = service.send("POST", WARM_PATH, json=body)
        if wait:
            try:
                job = waited_for(service, job)
            except KeyboardInterrupt:
                raise exit_with(f"interrupted; the warm-up {job['id']} continues", INTERRUPTED) from None
    if as_json:
        print_document(job)
    else:
        typer.echo(
            f"{job['status']}: {job['done']:,} of {job['total']:,} questions; stored {job['stored']:,}, "
            f"skipped {job['skipped']:,}, failed {job['failed']:,} (job {job['id']})"
        )
    for error in job["errors"]:
        typer.echo(f"ragherd: {clean(_error_line(error))}", err=True)
    if job["failed"] or job["status"] in {"failed", "cancelled"}:
        raise typer.Exit(FAILED)


def _error_line(error: Any) -> str:
    return error if isinstance(error, str) else json.dumps(error)


def read_questions(file: str) -> list[Any]:
    """Returns the questions of a file. Ends the command if there is none, or a line is not JSON."""
    try:
        text = sys.stdin.read() if file == STREAM else Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise exit_with(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}", USAGE_ERROR) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise exit_with(f"{file}: has no question", USAGE_ERROR)
    as_json_lines = file.endswith((".jsonl", ".ndjson")) or lines[0][1].startswith("{")
    return [_parsed(file, *line) for line in lines] if as_json_lines else [line for _, line in lines]


def _parsed(file: str, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise exit_with(f"{file}, line {number}: not JSON: {error}", USAGE_ERROR) from None


def waited_for(service: ServiceClient, job: Any, seconds: float = math.inf) -> Any:
    """Returns a warm-up when it has ended, or after the time. Shows its progress if standard error is a terminal."""
    deadline = time.monotonic() + seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("questions", total=job["total"])
        while job["status"] == "running" and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            job = service.get(f"{WARM_PATH}/{job['id']}")
            progress.update(task, completed=job["done"])
    return job


# -- Invalidate --------------------------------------------------------------------------------------------------------


_AGO: Final = re.compile(r"(\d{1,5})([smhd])")
_LONG_AGO: Final = 1_000_000_000
"""Seconds since 1970: in 2001. An earlier time is a mistake."""
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def start_of(value: str | None) -> str | None:
    """Converts a duration such as `2h` to the time that was so long ago. Leaves a time as it is.

    Ends the command for a number without a unit: as seconds since 1970 it would delete everything.
    """
    if value and value.isdecimal() and int(value) < _LONG_AGO:
        raise exit_with(f"--since {value}: give a unit, such as {value}m, or a time", USAGE_ERROR)
    found = _AGO.fullmatch(value or "")
    if found is None:
        return value
    then = datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def invalidate(
    question: Annotated[str | None, typer.Option(help="Answers to this question, in every scope.")] = None,
    similarity: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="With --question: also questions with this cosine to it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --question: only answers of this model.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="All answers of a tenant; with --question or --tag, only its.")
    ] = None,
    entry: Annotated[str | None, typer.Option(help="One entry, by its key in Redis.")] = None,
    source: Annotated[str | None, typer.Option(help="Answers that cite the document with this ID.")] = None,
    with_tag: Annotated[
        str | None, typer.Option("--tag", help="Answers that cite a document with this tag, of --tenant or `default`.")
    ] = None,
    release: Annotated[str | None, typer.Option(help="Answers that this release of Ragherd stored.")] = None,
    since: Annotated[
        str | None,
        typer.Option(callback=start_of, help="Answers stored since then: 90m, 2h, or 2026-11-28T15:00:00Z."),
    ] = None,
    all_answers: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the answers.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Delete cached answers in the whole fleet. Counts them and asks first. Needs an admin key.

    Give exactly one of --question, --entry, --source, --tag, --release, --since, --tenant and --all. After the command,
    no worker serves these answers.
    """
    given = {
        "question": question,
        "similarity": similarity,
        "model": model,
        "tenant": tenant,
        "entry": entry,
        "source": source,
        "tag": with_tag,
        "release": release,
        "since": since,
        "all": "true" if all_answers else None,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    if not {"question", "entry", "source", "tag", "release", "since", "tenant", "all"} & set(wanted):
        kinds = "--question, --entry, --source, --tag, --release, --since, --tenant and --all"
        raise exit_with(f"give one of {kinds}", USAGE_ERROR)
    with connected(url, read_seconds=DELETE_SECONDS) as service:
        found = _deleted(service, wanted, dry_run=dry_run, yes=yes)
    if as_json:
        print_document(found)
    elif found["dry_run"]:
        typer.echo(f"{_answers(found['matched'])} would be deleted. Nothing was changed.")
    else:
        typer.echo(f"Deleted {_answers(found['deleted'])}.")


def _deleted(service: ServiceClient, wanted: dict[str, str | float], *, dry_run: bool, yes: bool) -> dict[str, Any]:
    """Counts the answers, asks unless `yes`, and deletes them unless `dry_run`."""
    found: dict[str, Any] = service.send("DELETE", CACHE_PATH, params={**wanted, "dry_run": "true"})
    if dry_run or not found["matched"]:
        return found
    if not yes:
        many = _answers(found["matched"])
        confirm(f"Delete {many}?", f"{many} would be deleted", otherwise="--yes, or --dry-run")
    deleted: dict[str, Any] = service.send("DELETE", CACHE_PATH, params=wanted)
    return deleted


def _answers(count: int) -> str:
    return f"{count:,} cached answer{'' if count == 1 else 's'}"
