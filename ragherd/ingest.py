"""`ragherd ingest`: uploads files and folders to the knowledge base of a running service, several at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ragherd.document_client import (
    MAX_OUTAGE_SECONDS,
    DocumentClient,
    DocumentFile,
    FoundFiles,
    Refused,
    SameSource,
    ServiceGone,
    Unusable,
    connected,
    find,
    legacy_source,
    title_of,
)
from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.service_client import KEY_VARIABLE, AsJson, Url, own_address, print_document, usable_key, without_user

KEY_VARIABLES: Final = [KEY_VARIABLE, "RAGHERD_KEY"]
"""The second is the name in earlier releases."""
OUTCOMES: Final = ("created", "updated", "unchanged", "failed", "deleted")


@dataclass(frozen=True, slots=True)
class CommonFields:
    """The fields that all files share."""

    tenant: str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None


@dataclass(slots=True)
class Result:
    """`counts` is by outcome: created, updated, unchanged, failed, deleted. `chunks` is the sum over all files.

    `gone`: the service stopped answering.
    """

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    failures: list[str] = field(default_factory=list)
    gone: bool = False


async def upload_all(
    client: DocumentClient,
    files: Sequence[DocumentFile],
    common: CommonFields,
    concurrency: int,
    on_done: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Uploads files. A refused file does not affect the others. Calls `on_done` after each.

    If the service does not answer within the time limit, the remaining files are not sent.
    """
    result, waiting = Result(), iter(files)

    async def upload_files() -> None:
        for file in waiting:
            try:
                outcome, chunks = await _upload(client, file, common)
            except (Refused, OSError) as error:
                result.counts["failed"] += 1
                result.failures.append(f"{file.source}: {error}")
                if isinstance(error, ServiceGone):
                    result.gone = True
                    return
            else:
                result.counts[outcome] += 1
                result.chunks += chunks
            on_done(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(upload_files())
    if unsent := sum(1 for _ in waiting):
        result.counts["failed"] += unsent
        result.failures.append(f"{unsent:,} more files were not sent")
    return result


async def prune(client: DocumentClient, found: FoundFiles, common: CommonFields) -> int:
    """Deletes documents of the folders or the collection whose files are gone, and returns their number."""
    prefixes = tuple(f"{folder}/" for folder in found.folders)
    present = {file.source for file in found.files}
    gone = [
        document["id"]
        for document in await client.all_of(common.tenant)
        if (document["source"] or "").startswith(prefixes) and document["source"] not in present
    ]
    for document in gone:
        await client.delete(document)
    return len(gone)


async def legacy_folders(client: DocumentClient, found: FoundFiles, common: CommonFields) -> list[str]:
    """Returns the names of folders whose files an earlier release stored under the folder's name only."""
    firsts = {file.source.partition("/")[0]: legacy_source(file.source) for file in reversed(found.files)}
    return [
        former.partition("/")[0]
        for folder, former in firsts.items()
        if folder in found.folders and await client.has(former, common.tenant)
    ]


async def _upload(client: DocumentClient, file: DocumentFile, common: CommonFields) -> tuple[str, int]:
    if file.source != file.source.encode("utf-8", "replace").decode():
        raise Refused("the file name is not UTF-8")
    content = await asyncio.to_thread(file.path.read_bytes)
    given = {
        "title": title_of(file, content),
        "source": file.source,
        "version": common.version,
        "tenant": common.tenant,
    }
    fields: dict[str, str | list[str]] = {name: value for name, value in given.items() if value is not None}
    outcome, document = await client.upload(file.path.name, content, {**fields, "tags": list(common.tags)})
    return outcome, int(document["chunks"])


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and store nothing.")] = False,
    as_json: AsJson = False,
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
    began = time.monotonic()
    try:
        result = asyncio.run(
            _run(url or own_address(), key, found, common, concurrency, pruned=prune_gone, named=collection is not None)
        )
    except Refused as error:
        codes = {Unusable: USAGE_ERROR, ServiceGone: UNREACHABLE}
        raise exit_with(str(error), codes.get(type(error), FAILED)) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. Run the command again to continue.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _report(result, found.skipped, time.monotonic() - began, as_json=as_json)


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
    url: str, key: str | None, found: FoundFiles, common: CommonFields, concurrency: int, *, pruned: bool, named: bool
) -> Result:
    if not url.lower().startswith(("http://", "https://")):
        raise Unusable(f"--url {without_user(url)}: must be http://HOST:PORT or https://HOST:PORT")
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
            result.counts["deleted"] = await prune(client, found, common) if pruned else 0
            return result
