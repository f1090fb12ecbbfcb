"""`ragherd ingest`: folders of files into the knowledge base of a running service."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from api.cli.document_client import Refused, connected
from api.cli.document_files import Found, SameSource, find
from api.cli.exits import FAILED, INTERRUPTED, end
from api.cli.ingest_run import About, Result, former_documents, prune, upload_all

FORMER: Final = (
    "An earlier release stored documents as '{folder}/...'. They stay beside the new ones: "
    "use --collection {folder} to go on with them, or delete them."
)


def _collection(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[^/\x00-\x1f\x7f]{1,200}", name):
        raise typer.BadParameter("1 to 200 characters without '/' and control characters")
    return name


def ingest(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files and folders; folders with all below.")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8001",
    key: Annotated[str | None, typer.Option(envvar="RAGHERD_KEY", help="An admin's key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose documents they are.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    version: Annotated[str | None, typer.Option(help="Of all of them.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Files at once.")] = 4,
    collection: Annotated[
        str | None,
        typer.Option(help="A name for all of them, in place of each folder's host and path.", callback=_collection),
    ] = None,
    prune_gone: Annotated[
        bool,
        typer.Option("--prune", help="Delete documents of these folders, or of the collection, whose file is gone."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files.")] = False,
) -> None:
    """Store files as documents: .txt, .md, .html, .pdf, .docx. What is stored already is left as it is.

    It can be stopped at any time: running it again goes on where it was.
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
