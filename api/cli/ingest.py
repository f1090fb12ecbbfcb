"""`ragherd ingest`: folders of files into the knowledge base of a running service.

Uploads files, several at once, and counts what becomes of each.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from api.cli.document_client import (
    DocumentClient,
    DocumentFile,
    Found,
    Refused,
    SameSource,
    ServiceGone,
    connected,
    find,
    former_source,
    title_of,
)
from api.cli.main import FAILED, INTERRUPTED, end


@dataclass(frozen=True, slots=True)
class About:
    """What is said of all files alike."""

    tenant: str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None


@dataclass(slots=True)
class Result:
    """`counts` by outcome: created, updated, unchanged, failed, deleted. `chunks` are those of all files."""

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    failures: list[str] = field(default_factory=list)


async def upload_all(
    client: DocumentClient,
    files: Sequence[DocumentFile],
    about: About,
    concurrency: int,
    on_done: Callable[[Result], None] = lambda result: None,
) -> Result:
    """One that is refused keeps none of the others. `on_done` is told after each.

    A service that one file has waited for in vain is not waited for with the next.
    """
    result, waiting = Result(), iter(files)

    async def lane() -> None:
        for file in waiting:
            try:
                outcome, chunks = await _upload(client, file, about)
            except (Refused, OSError) as error:
                result.counts["failed"] += 1
                result.failures.append(f"{file.source}: {error}")
                if isinstance(error, ServiceGone):
                    return
            else:
                result.counts[outcome] += 1
                result.chunks += chunks
            on_done(result)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(concurrency):
            lanes.create_task(lane())
    if unsent := sum(1 for _ in waiting):
        result.counts["failed"] += unsent
        result.failures.append(f"{unsent:,} more that were not sent")
    return result


async def prune(client: DocumentClient, found: Found, about: About) -> int:
    """Deletes documents of the folders, or of the collection, whose file is gone."""
    prefixes = tuple(f"{folder}/" for folder in found.folders)
    present = {file.source for file in found.files}
    gone = [
        document["id"]
        for document in await client.all_of(about.tenant)
        if (document["source"] or "").startswith(prefixes) and document["source"] not in present
    ]
    for document in gone:
        await client.delete(document)
    return len(gone)


async def former_documents(client: DocumentClient, found: Found, about: About) -> list[str]:
    """The names of folders whose files were stored by an earlier release, under that name alone."""
    firsts = {file.source.partition("/")[0]: former_source(file.source) for file in reversed(found.files)}
    return [
        former.partition("/")[0]
        for folder, former in firsts.items()
        if folder in found.folders and await client.has(former, about.tenant)
    ]


async def _upload(client: DocumentClient, file: DocumentFile, about: About) -> tuple[str, int]:
    if file.source != file.source.encode("utf-8", "replace").decode():
        raise Refused("its name is not UTF-8")
    content = await asyncio.to_thread(file.path.read_bytes)
    said = {
        "title": title_of(file, content),
        "source": file.source,
        "version": about.version,
        "tenant": about.tenant,
    }
    fields: dict[str, str | list[str]] = {name: value for name, value in said.items() if value is not None}
    outcome, document = await client.upload(file.path.name, content, {**fields, "tags": list(about.tags)})
    return outcome, int(document["chunks"])


FORMER: Final = (
    "An earlier release stored documents as '{folder}/...'. They stay beside the new ones: "
    "use --collection {folder} to go on with them, or delete them."
)


def _collection(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[^/\x00-\x1f\x7f]{1,200}", name):
        raise typer.BadParameter("1 to 200 characters without '/' and control characters")
    return name


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(exists=True, help="Files and folders. Folders include everything below them.")
    ],
    url: Annotated[str, typer.Option(help="URL of the service.")] = "http://127.0.0.1:8001",
    key: Annotated[str | None, typer.Option(envvar="RAGHERD_KEY", help="Admin key.")] = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and store nothing.")] = False,
) -> None:
    """Store files as documents: .txt, .md, .html, .pdf, .docx. Files that are stored already are left alone.

    You can stop it at any time. The next run continues where it stopped.
    """
    try:
        found = find(paths, collection)
    except (SameSource, OSError) as error:
        raise end(str(error)) from None
    if dry_run:
        for file in found.files:
            typer.echo(file.source)
        return
    about = About(tenant, tuple(tag or ()), version)
    began = time.monotonic()
    try:
        result = asyncio.run(_run(url, key, found, about, concurrency, pruned=prune_gone, named=collection is not None))
    except Refused as error:
        raise end(str(error)) from None
    except KeyboardInterrupt:
        typer.echo("Stopped: running it again goes on from here.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(summary(result, found.skipped, time.monotonic() - began))
    for failure in result.failures:
        typer.echo(f"failed: {failure}", err=True)
    if result.failures:
        raise typer.Exit(FAILED)


def summary(result: Result, skipped: int, seconds: float) -> str:
    """One line."""
    counts = {name: result.counts[name] for name in ("created", "updated", "unchanged", "failed", "deleted")}
    said = [f"{name} {count:,}" for name, count in {**counts, "skipped": skipped}.items() if count] or ["no files"]
    return f"{', '.join(said)} ({result.chunks:,} chunks) in {seconds:.1f} s"


async def _run(
    url: str, key: str | None, found: Found, about: About, concurrency: int, *, pruned: bool, named: bool
) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Documents", total=len(found.files))
        async with connected(url, key, on_wait=lambda why: console.print(f"Waiting for {url}: {why}")) as client:
            for folder in () if named else await former_documents(client, found, about):
                console.print(FORMER.format(folder=folder), highlight=False)

            def show(result: Result) -> None:
                done = sum(result.counts.values())
                progress.update(task, completed=done, description=f"Documents ({result.chunks:,} chunks)")

            result = await upload_all(client, found.files, about, concurrency, show)
            result.counts["deleted"] = await prune(client, found, about) if pruned else 0
            return result
