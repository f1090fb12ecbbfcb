"""`ragherd backup` and `ragherd restore`: save documents and cached answers to a file, and load it into Redis.

The service can keep running. The Redis of a restore may be empty or in use.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, BinaryIO, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from api.backup.archive import BackupError, BackupWriter, VerifiedBackup, verify_backup
from api.backup.transfer import BackupScope, OnStep, Restored, RestoreScope, restore_backup, take_backup
from api.errors import SettingsError, StoreUnavailable
from api.settings import Settings, load_settings
from api.wiring.backup import MAKER, opened_memory
from ragherd.exits import INTERRUPTED, USAGE_ERROR, exit_with
from ragherd.service_client import AsJson, print_document

STREAM: Final = "-"


@contextmanager
def shown_progress() -> Iterator[OnStep]:
    """Shows a progress bar for documents and one for answers on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def step(what: str, done: int, about: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=max(done, about))

        yield step


# -- Backup ------------------------------------------------------------------------------------------------------------


def backup(
    file: Annotated[str, typer.Argument(help="File to write. - is standard output.")],
    documents: Annotated[bool, typer.Option("--documents", help="Documents only.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Cached answers only.")] = False,
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant. Can be repeated.")] = None,
    vectors: Annotated[
        bool, typer.Option(help="Include chunks and vectors, so that a restore does not embed them again.")
    ] = True,
    plain: Annotated[bool, typer.Option("--plain", help="Do not compress.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only. FILE is not written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save documents and cached answers from Redis (REDIS_URL, REDIS_PREFIX). The service can keep running."""
    if as_json and file == STREAM and not dry_run:
        raise exit_with("--json: standard output has the backup; name a FILE", USAGE_ERROR)
    wanted = BackupScope(documents or not cache, cache or not documents, tuple(tenant or ()), vectors)
    with _faults("backup"):
        settings = load_settings()
        with _opened_for_writing(os.devnull if dry_run else file) as stream:
            counts = asyncio.run(_save(settings, stream, wanted, plain=plain))
    if as_json:
        kinds = {"documents": "document", "chunk_lines": "chunks", "answers": "answer"}
        print_document({**{name: counts[kind] for name, kind in kinds.items()}, "dry_run": dry_run})
    summary = f"{counts['document']:,} documents ({counts['chunks']:,} lines of chunks), {counts['answer']:,} answers"
    typer.echo(f"{'Would save' if dry_run else 'Saved'} {summary}", err=True)


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Ends the command with one line."""
    try:
        yield
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except (StoreUnavailable, OSError) as error:
        raise exit_with(str(error)) from None
    except KeyboardInterrupt:
        raise exit_with(f"interrupted: no {what} was written", INTERRUPTED) from None


def export(
    file: Annotated[str, typer.Argument(help="File to write. - is standard output.")],
    tenant: Annotated[str, typer.Option(help="The tenant.")],
    as_json: AsJson = False,
) -> None:
    """Write all data of one tenant as JSON lines: documents, cached answers, labels, kept pairs, quarantined answers.

    It reads Redis (REDIS_URL, REDIS_PREFIX). The service can keep running. `restore` reads documents and answers back.
    """
    if as_json and file == STREAM:
        raise exit_with("--json: standard output has the export; name a FILE", USAGE_ERROR)
    wanted = BackupScope(tenants=(tenant,), vectors=False)
    with _faults("export"):
        settings = load_settings()
        with _opened_for_writing(file) as stream:
            counts = asyncio.run(_save(settings, stream, wanted, plain=True, feedback_of=tenant))
    kinds = {"documents": "document", "answers": "answer", "labels": "label", "pairs": "pair"}
    found = {name: counts[kind] for name, kind in {**kinds, "quarantined": "quarantined"}.items()}
    if as_json:
        print_document(found)
    typer.echo("Exported " + ", ".join(f"{count:,} {name}" for name, count in found.items()), err=True)


async def _save(
    settings: Settings, stream: BinaryIO, wanted: BackupScope, *, plain: bool, feedback_of: str | None = None
) -> Counter[str]:
    writer = BackupWriter(stream, plain=plain)
    async with opened_memory(settings, writes=False) as memory:
        more = memory.feedback_of(feedback_of) if feedback_of is not None else None
        with shown_progress() as step:
            await take_backup(memory.source, memory.deletions, writer, wanted, MAKER, step, more)
    return writer.counts


@contextmanager
def _opened_for_writing(file: str) -> Iterator[BinaryIO]:
    """Writes to a temporary file and renames it when it is complete."""
    if file == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if Path(file).exists() and not Path(file).is_file():
        with Path(file).open("wb") as device:  # or a pipe: replacing it with a file would destroy it
            yield device
        return
    target = Path(file).resolve()
    part = target.with_name(f"{target.name}.part")
    try:
        with _private(part) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _private(part: Path) -> BinaryIO:
    """Creates a file that only the owner can read, because it contains all tenants' documents."""
    part.unlink(missing_ok=True)
    return os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


# -- Restore -----------------------------------------------------------------------------------------------------------


def restore(
    file: Annotated[str, typer.Argument(help="File written by `ragherd backup`. - is standard input.")],
    documents: Annotated[bool, typer.Option("--documents", help="Documents only.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Cached answers only.")] = False,
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant. Can be repeated.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite documents that are newer in Redis.")] = False,
    rewind: Annotated[
        bool, typer.Option("--rewind", help="First delete the cached answers that are newer than the backup.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a backup into Redis (REDIS_URL, REDIS_PREFIX). You can repeat it: entries that exist are left alone."""
    if rewind and documents and not cache:
        raise exit_with("--rewind: --documents leaves the cached answers alone", USAGE_ERROR)
    about = (documents or not cache, cache or not documents, tuple(tenant or ()), replace)
    chosen = RestoreScope(*about, dry_run=dry_run, rewind=rewind)
    try:
        settings = load_settings()
        with _opened_for_reading(file) as stream:
            restored = asyncio.run(_load(settings, stream, _checked(stream), chosen))
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except BackupError as error:
        raise exit_with(f"{file}: {error}") from None
    except (StoreUnavailable, OSError) as error:
        raise exit_with(f"{error}; run the command again to continue") from None
    except KeyboardInterrupt:
        raise exit_with("interrupted; run the command again to continue", INTERRUPTED) from None
    _report(restored, dry_run=dry_run, rewind=rewind, as_json=as_json)
    if restored.documents["refused"]:
        raise exit_with("DOCUMENTS_MAX: a tenant has reached its limit, so documents were not restored")


def _report(restored: Restored, *, dry_run: bool, rewind: bool, as_json: bool) -> None:
    if as_json:
        newer = {"newer_deleted": restored.newer} if rewind else {}
        print_document({"documents": restored.documents, "answers": restored.answers, **newer, "dry_run": dry_run})
        return
    if rewind:
        typer.echo(f"newer answers: {'would be deleted' if dry_run else 'deleted'} {restored.newer:,}")
    for what, counts in (("documents", restored.documents), ("answers", restored.answers)):
        typer.echo(f"{what}: {_counted(counts)}")
    if dry_run:
        typer.echo("Nothing was changed.")


async def _load(settings: Settings, stream: BinaryIO, backup: VerifiedBackup, chosen: RestoreScope) -> Restored:
    async with opened_memory(settings, writes=not chosen.dry_run) as memory:
        with shown_progress() as step:
            return await restore_backup(memory.target, stream, backup, chosen, step)


def _checked(stream: BinaryIO) -> VerifiedBackup:
    try:
        return verify_backup(stream)
    except BackupError as error:
        raise BackupError(f"{error}; nothing was changed") from None


@contextmanager
def _opened_for_reading(file: str) -> Iterator[BinaryIO]:
    """Yields a seekable stream, because the file is validated completely before anything is restored."""
    with nullcontext(sys.stdin.buffer) if file == STREAM else _file(file) as stream:
        if file != STREAM and stream.seekable():
            yield stream
            return
        with TemporaryFile() as spooled:
            shutil.copyfileobj(stream, spooled)
            yield spooled


def _file(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise BackupError(f"{error.strerror}; nothing was changed") from None


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{outcome} {count:,}" for outcome, count in counts.most_common()) or "none"
