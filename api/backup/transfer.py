"""Takes and restores backups while the fleet works.

Documents come first, then the answers that cite them. A restore keeps only the answers that are still right for the
documents. Repeating an interrupted restore continues it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, Final

from api.backup.archive import (
    FORMAT,
    BackupError,
    BackupWriter,
    Header,
    Line,
    VerifiedBackup,
    answer_line,
    answers,
    corpora_line,
    deletions,
    deletions_line,
    document_lines,
    documents,
)
from api.ports.backup_storage import BackupSource, BackupTarget, StoredAnswer
from api.ports.document_work import Deletions, tags_for

OnStep = Callable[[str, int, int], None]
"""Called at each step with its kind, the number done, and the approximate total."""


@dataclass(frozen=True, slots=True)
class BackupScope:
    """The contents of a backup. No tenants: all. `vectors`: include chunks, so that a restore need not embed again."""

    documents: bool = True
    cache: bool = True
    tenants: tuple[str, ...] = ()
    vectors: bool = True


@dataclass(frozen=True, slots=True)
class BackupOrigin:
    """The release that takes a backup, and its schema of the Redis keys."""

    release: str
    schema: str


async def take_backup(
    source: BackupSource,
    deletions: Deletions,
    writer: BackupWriter,
    scope: BackupScope,
    origin: BackupOrigin,
    on: OnStep,
    more: AsyncIterator[Line] | None = None,
) -> None:
    """Writes the whole backup. `more`: further lines, which a restore ignores. Raises `StoreUnavailable`."""
    now_ms = await source.now_ms()
    now = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    about = (now, origin.release, origin.schema, scope.documents, scope.cache)
    header = Header(FORMAT, *about, scope.tenants, *await source.expected(), now_ms)
    writer.write(header.line())
    if scope.documents:
        await _documents(source, writer, scope, header.expected_documents, on)
    if scope.cache:
        writer.write(deletions_line(tags_for(await deletions.noted(), scope.tenants)))
        await _answers(source, writer, scope.tenants, header.expected_answers, on)
    if more is not None:
        async for line in more:
            writer.write(line)
    writer.end()


async def _documents(source: BackupSource, writer: BackupWriter, scope: BackupScope, about: int, on: OnStep) -> None:
    async for stored in source.documents(scope.tenants, vectors=scope.vectors):
        for line in document_lines(stored):
            writer.write(line)
        on("documents", writer.counts["document"], about)


async def _answers(source: BackupSource, writer: BackupWriter, tenants: Sequence[str], about: int, on: OnStep) -> None:
    before = await source.unsettled()
    grounded: set[str] = set()
    async for answer in source.answers(tenants):
        writer.write(answer_line(answer))
        if answer.is_grounded:
            grounded.add(answer.tenant)
        on("answers", writer.counts["answer"], about)
    writer.write(corpora_line(await _corpora(source, sorted(grounded), before)))


async def _corpora(source: BackupSource, tenants: Sequence[str], before: Mapping[str, int | None]) -> Mapping[str, str]:
    """Returns the corpus digest of each tenant, or an empty string if the corpus changed while answers were read."""
    found = {}
    for tenant in tenants:
        epoch, digest = await source.corpus(tenant)
        found[tenant] = digest if before.get(tenant, 0) == epoch else ""
    return found


ANSWER_BATCH: Final = 100
"""Answers restored together."""


@dataclass(frozen=True, slots=True)
class RestoreScope:
    """The parts of a backup to restore. No tenants: all. `replace`: overwrite documents that are newer in Redis.

    `rewind`: first delete the answers that are newer than the backup.
    """

    documents: bool = True
    cache: bool = True
    tenants: tuple[str, ...] = ()
    replace: bool = False
    dry_run: bool = False
    rewind: bool = False

    def has(self, tenant: str) -> bool:
        """Returns whether to restore this tenant."""
        return not self.tenants or tenant in self.tenants


@dataclass(slots=True)
class Restored:
    """The number of documents and answers by outcome. `newer`: answers deleted because they are newer."""

    documents: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    newer: int = 0


async def restore_backup(
    target: BackupTarget, file: BinaryIO, backup: VerifiedBackup, scope: RestoreScope, on: OnStep
) -> Restored:
    """Restores a verified backup. Raises `StoreUnavailable` or `BackupError`."""
    restored = Restored()
    if scope.rewind and not backup.header.cache:
        raise BackupError("it has no cached answers to rewind to; nothing was changed")
    if scope.documents:
        await _put_documents(target, file, backup, scope, restored, on)
    if scope.cache:
        tenants = _rewound(backup.header.tenants, scope.tenants)
        if scope.rewind and tenants is not None:
            after = backup.header.end_of_creation_ms
            restored.newer = await target.rewind(after, tenants, dry_run=scope.dry_run)
        await target.put_deletions(tags_for(deletions(file), scope.tenants), dry_run=scope.dry_run)
        await _put_answers(target, file, backup, scope, restored, on)
    return restored


def _rewound(saved: Sequence[str], wanted: Sequence[str]) -> Sequence[str] | None:
    """Returns the tenants of both; empty: all. None if no tenant is in both.

    The answers of other tenants must stay: the backup has none to put back.
    """
    if not (saved and wanted):
        return saved or wanted
    return [tenant for tenant in wanted if tenant in saved] or None


async def _put_documents(
    target: BackupTarget, file: BinaryIO, backup: VerifiedBackup, scope: RestoreScope, restored: Restored, on: OnStep
) -> None:
    for stored in documents(file):
        if scope.has(stored.document.facts.tenant):
            outcome = await target.put_document(stored, replace=scope.replace, dry_run=scope.dry_run)
            restored.documents[outcome] += 1
        on("documents", restored.documents.total(), backup.lines["document"])
    await target.settle()


async def _put_answers(
    target: BackupTarget, file: BinaryIO, backup: VerifiedBackup, scope: RestoreScope, restored: Restored, on: OnStep
) -> None:
    matching = (answer for answer in answers(file) if scope.has(answer.tenant))
    for batch in _batched(matching):
        outcomes = await target.put_answers(batch, backup.corpora, dry_run=scope.dry_run)
        restored.answers.update(outcomes)
        on("answers", restored.answers.total(), backup.lines["answer"])


def _batched(found: Iterator[StoredAnswer]) -> Iterator[Sequence[StoredAnswer]]:
    while batch := list(islice(found, ANSWER_BATCH)):
        yield batch
