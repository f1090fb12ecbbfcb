"""`ragherd dev`: runs the whole service on one machine, and starts Redis and a model server if they are missing.

It stores Ragherd's own documentation, so that newcomers can ask about the product.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

import api
from api.embedded.child_process import LaunchError, MissingPackage
from api.embedded.stack import Stack, running_stack, stop_signals_interrupt
from api.errors import SettingsError
from api.settings import Settings, load_settings
from ragherd.document_client import DocumentFile, connected, find
from ragherd.exits import INTERRUPTED, USAGE_ERROR, exit_with
from ragherd.self_check import CheckFailed, run_self_check, summary
from ragherd.uploads import CommonFields, Result, upload_all

COLLECTION: Final = "docs"
TAG: Final = "ragherd"
CONCURRENCY: Final = 4
LEFT_OUT: Final = frozenset({"tutorial.md", "rollout-transcript.md", "measurements.md", "quality.md", "redis-keys.md"})
"""Transcripts and tables. The small model would quote the tutorial's printed answers instead of answering."""


def documentation_folder() -> Path | None:
    """Returns the folder of the documentation: next to this file in a wheel, `docs` in a checkout."""
    root = Path(api.__file__).parents[1]
    in_wheel, in_checkout = Path(__file__).parent / "pages", root / "docs"
    if in_wheel.is_dir():
        return in_wheel
    return in_checkout if (root / "pyproject.toml").is_file() and in_checkout.is_dir() else None


def demo_pages(folder: Path) -> tuple[DocumentFile, ...]:
    """Returns the pages that explain the product in sentences, without `LEFT_OUT` and the decisions."""
    files = find([folder], collection=COLLECTION).files
    return tuple(file for file in files if file.path.parent == folder.resolve() and file.path.name not in LEFT_OUT)


def store_documentation(url: str, settings: Settings, report: Callable[[str], None]) -> int:
    """Stores the documentation. Returns the number of stored pages; 0 if there are none or the service refuses them."""
    folder = documentation_folder()
    files = demo_pages(folder) if folder else ()
    if not files:
        return 0
    keys = settings.access.admins()
    began = time.monotonic()

    async def run() -> Result:
        async with connected(url, keys[0] if keys else None) as client:
            return await upload_all(client, files, CommonFields(tags=(TAG,)), CONCURRENCY)

    result = asyncio.run(run())
    stored = len(files) - result.counts["failed"]
    if result.failures:
        report(f"Documents: {result.failures[0]}")
    if stored:
        seconds = time.monotonic() - began
        report(f"Documents: stored {stored} pages of documentation as {result.chunks} chunks in {seconds:.1f} s")
    return stored


DATA_DIR = Path(".data")


def dev(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Ask a question and its paraphrase, check that the second is a cache hit, and stop."
        ),
    ] = False,
    docs: Annotated[bool, typer.Option(help="Store Ragherd's own pages as documents.")] = True,
) -> None:
    """Run everything on this machine, with an embedded Redis and a small model if there are none. Ctrl-C stops it."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    with stop_signals_interrupt():
        if check:
            _check(settings, docs)
        else:
            _serve(settings, docs)


def _serve(settings: Settings, docs: bool) -> None:
    serving = False
    try:
        with running_stack(settings, DATA_DIR, typer.echo) as stack:
            serving = True
            _store(stack, settings, docs)
            typer.echo(summary(stack, settings))
            stack.watch()
    except MissingPackage as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except LaunchError as error:
        raise exit_with(str(error)) from None
    except KeyboardInterrupt:
        typer.echo("Stopped.")
        raise typer.Exit(0 if serving else INTERRUPTED) from None


def _store(stack: Stack, settings: Settings, docs: bool) -> int:
    return store_documentation(stack.addresses.url, settings, typer.echo) if docs else 0


def _check(settings: Settings, docs: bool) -> None:
    began = time.monotonic()
    try:
        with running_stack(settings, DATA_DIR, typer.echo) as stack:
            run_self_check(stack, settings, typer.echo, grounded=_store(stack, settings, docs) > 0)
    except MissingPackage as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except (LaunchError, CheckFailed) as error:
        raise exit_with(f"check failed: {error}") from None
    except KeyboardInterrupt:
        raise exit_with("check interrupted", INTERRUPTED) from None
    typer.echo(f"Check passed in {time.monotonic() - began:.1f} s; everything is stopped.")
