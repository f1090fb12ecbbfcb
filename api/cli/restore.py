"""`ragherd restore`: loads a backup into Redis, which may be empty or in use."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, BinaryIO

import typer

from api.backup.archive import BackupError, VerifiedBackup, verify_backup
from api.backup.transfer import Restored, RestoreScope, restore_backup
from api.cli.backup import STREAM, shown_progress
from api.cli.main import INTERRUPTED, USAGE_ERROR, exit_with
from api.errors import SettingsError, StoreUnavailable
from api.settings import Settings, load_settings
from api.wiring.backup import opened_memory


def restore(
    file: Annotated[str, typer.Argument(help="File written by `ragherd backup`. - is standard input.")],
    documents: Annotated[bool, typer.Option("--documents", help="Documents only.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Cached answers only.")] = False,
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant. Can be repeated.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite documents that are newer in Redis.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
) -> None:
    """Load a backup into Redis (REDIS_URL, REDIS_PREFIX). You can repeat it: entries that exist are left alone."""
    chosen = RestoreScope(documents or not cache, cache or not documents, tuple(tenant or ()), replace, dry_run)
    try:
        settings = load_settings()
        with _opened(file) as stream:
            restored = asyncio.run(_run(settings, stream, _checked(stream), chosen))
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except BackupError as error:
        raise exit_with(f"{file}: {error}") from None
    except (StoreUnavailable, OSError) as error:
        raise exit_with(f"{error}; run the command again to continue") from None
    except KeyboardInterrupt:
        raise exit_with("interrupted; run the command again to continue", INTERRUPTED) from None
    for what, counts in (("documents", restored.documents), ("answers", restored.answers)):
        typer.echo(f"{what}: {_summary(counts)}")
    if dry_run:
        typer.echo("Nothing was changed.")
    if restored.documents["refused"]:
        raise exit_with("DOCUMENTS_MAX: a tenant has reached its limit, so documents were not restored")


async def _run(settings: Settings, stream: BinaryIO, backup: VerifiedBackup, chosen: RestoreScope) -> Restored:
    async with opened_memory(settings, writes=not chosen.dry_run) as memory:
        with shown_progress() as step:
            return await restore_backup(memory.target, stream, backup, chosen, step)


def _checked(stream: BinaryIO) -> VerifiedBackup:
    try:
        return verify_backup(stream)
    except BackupError as error:
        raise BackupError(f"{error}; nothing was changed") from None


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
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


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{outcome} {count:,}" for outcome, count in counts.most_common()) or "none"
