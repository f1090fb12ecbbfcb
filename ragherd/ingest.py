"""`ragherd ingest`: uploads files and folders to the knowledge base of a running service, several at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ragherd.document_client import (
    MAX_OUTAGE_SECONDS,
    FoundFiles,
    Refused,
    SameSource,
    ServiceGone,
    Unusable,
    connected,
    find,
)
from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.follow import Follower
from ragherd.journal import Journal, until_stopped
from ragherd.service_client import KEY_VARIABLE, Url, own_address, print_document, usable_key, without_user
from ragherd.uploads import (
    MAX_DELETE,
    CommonFields,
    DeletionLimit,
    Result,
    TooManyGone,
    legacy_folders,
    prune,
    upload_all,
)
from ragherd.watch import watch

KEY_VARIABLES: Final = [KEY_VARIABLE, "RAGHERD_KEY"]
"""The second is the name in earlier releases."""
OUTCOMES: Final = ("created", "updated", "unchanged", "failed", "deleted")
MaxDelete = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help=f"Largest share of the documents that --prune deletes in an hour. Default: {MAX_DELETE} with --watch.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Delete more than --max-delete.")]
LEGACY_HINT: Final = (
    "An earlier release stored documents as '{folder}/...', which would stay as duplicates: "
    "use --collection {folder} to update them, or delete them."
)


def _collection(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[^/\x00-\x1f\x7f]{1,200}", name):
        raise typer.BadParameter("must have 1 to 200 characters, without '/' and control characters")
    return name


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(exists=True, help="Files and folders. Folders include everything below them.")
    ],
    url: Url = None,
    key: Annotated[str | None, typer.Option(envvar=KEY_VARIABLES, help="Admin key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant that the documents belong to.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for all documents. Can be repeated.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of all documents.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Files uploaded at the same time.")] = 4,
    collection: Annotated[
        str | None,
        typer.Option(help="Name for all sources, instead of each folder's host and path.", callback=_collection),
    ] = None,
    prune_gone: Annotated[
        bool,
        typer.Option("--prune", help="Delete documents from these folders, or this collection, whose files are gone."),
    ] = False,
    code: Annotated[
        bool, typer.Option("--code", help="Also store source code and data files (.py, .json, .yaml ...) of folders.")
    ] = False,
    watched: Annotated[
        bool, typer.Option("--watch", help="Follow the folders until Ctrl-C or SIGTERM. One line an event.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.05, max=3600, help="With --watch: seconds between two looks.")] = 3.0,
    max_delete: MaxDelete = None,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and store nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --watch, one line an event.")
    ] = False,
) -> None:
    """Store files as documents. Files that are stored already are left alone.

    You can stop it at any time. The next run continues where it stopped.
    """
    try:
        found = find(paths, collection, code=code)
    except (SameSource, OSError) as error:
        raise exit_with(str(error)) from None
    if dry_run:
        _list(found, as_json=as_json)
        return
    key = usable_key(key or "")
    common = CommonFields(tenant, tuple(tag or ()), version)
    with service_faults():
        address = usable_address(url or own_address())
        if watched:
            share = (MAX_DELETE if max_delete is None else max_delete) if prune_gone else None
            groups = [[path] for path in paths] if collection is None else [paths]
            followers = [
                Follower(
                    group,
                    common,
                    collection=collection,
                    code=code,
                    limit=limited(share, forced=force),
                    concurrency=concurrency,
                )
                for group in groups
            ]
            _watch(address, key, followers, Journal(as_json=as_json), every)
            return
        began = time.monotonic()
        pruning = Pruning(prune_gone, limited(max_delete, forced=force))
        result = asyncio.run(_run(address, key, found, common, concurrency, pruning, named=collection is not None))
    _report(result, found.skipped, time.monotonic() - began, as_json=as_json)


def _watch(url: str, key: str, followers: list[Follower], journal: Journal, every: float) -> None:
    asyncio.run(until_stopped(watch(url, key, followers, journal, every)))
    done = journal.counts
    journal.tell(
        "stopped", created=done["created"], updated=done["updated"], deleted=done["deleted"], failed=done["failed"]
    )


def limited(share: float | None, *, forced: bool) -> DeletionLimit | None:
    """Returns a new limit, or None without a share."""
    return None if share is None else DeletionLimit(share, forced=forced)


class Pruning(NamedTuple):
    """Whether documents without a file are deleted, and how many at most."""

    wanted: bool
    limit: DeletionLimit | None


@contextmanager
def service_faults() -> Iterator[None]:
    """Ends the command with one line and the exit code if the service refuses it or is away, and after Ctrl-C."""
    try:
        yield
    except Refused as error:
        codes = {Unusable: USAGE_ERROR, ServiceGone: UNREACHABLE}
        raise exit_with(str(error), codes.get(type(error), FAILED)) from None
    except KeyboardInterrupt:
        raise interrupted() from None


def interrupted() -> typer.Exit:
    """Says how to go on, and returns the exception for the caller to raise."""
    typer.echo("Stopped. Run the command again to continue.", err=True)
    return typer.Exit(INTERRUPTED)


def usable_address(url: str) -> str:
    """Returns an address with a known scheme. Raises `Unusable` for others."""
    if not url.lower().startswith(("http://", "https://")):
        raise Unusable(f"--url {without_user(url)}: must be http://HOST:PORT or https://HOST:PORT")
    return url


def _list(found: FoundFiles, *, as_json: bool) -> None:
    if as_json:
        print_document({"files": [file.source for file in found.files], "skipped": found.skipped})
        return
    for file in found.files:
        typer.echo(file.source)


def _report(result: Result, skipped: int, seconds: float, *, as_json: bool) -> None:
    if as_json:
        print_document(document(result, skipped))
    else:
        typer.echo(summary(result, skipped, seconds))
    for failure in result.failures:
        typer.echo(f"failed: {failure}", err=True)
    if result.failures:
        raise typer.Exit(UNREACHABLE if result.gone else FAILED)


def document(result: Result, skipped: int) -> dict[str, Any]:
    """Returns the counts by outcome, and the failures."""
    counts = {name: result.counts[name] for name in OUTCOMES}
    return {**counts, "skipped": skipped, "chunks": result.chunks, "failures": result.failures}


def summary(result: Result, skipped: int, seconds: float) -> str:
    """Returns one line."""
    counts = {name: result.counts[name] for name in OUTCOMES}
    parts = [f"{name} {count:,}" for name, count in {**counts, "skipped": skipped}.items() if count] or ["no files"]
    return f"{', '.join(parts)} ({result.chunks:,} chunks) in {seconds:.1f} s"


async def _run(
    url: str,
    key: str | None,
    found: FoundFiles,
    common: CommonFields,
    concurrency: int,
    pruning: Pruning,
    *,
    named: bool,
) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Documents", total=len(found.files))

        def waits(why: str) -> None:
            console.print(f"Waiting for {without_user(url)}: {why}", markup=False)

        async with connected(url, key, max_outage=MAX_OUTAGE_SECONDS, on_wait=waits) as client:
            for folder in () if named else await legacy_folders(client, found, common):
                console.print(LEGACY_HINT.format(folder=folder), highlight=False)

            def show(result: Result) -> None:
                done = sum(result.counts.values())
                progress.update(task, completed=done, description=f"Documents ({result.chunks:,} chunks)")

            result = await upload_all(client, found.files, common, concurrency, show)
            try:
                result.counts["deleted"] = await prune(client, found, common, pruning.limit) if pruning.wanted else 0
            except TooManyGone as error:
                result.failures.append(str(error))
            return result
