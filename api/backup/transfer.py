"""Takes a backup: documents first, then the answers that cite them, one after the other, while the fleet works.

Restores a backup: documents first, then the answers that are right for what serves by then.

Doing it again changes nothing: it goes on where it was broken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, Final

from api.backup.archive import (
    FORMAT,
    BackupWriter,
    Checked,
    Header,
    answer_line,
    answers,
    corpora_line,
    deletions,
    deletions_line,
    document_lines,
    documents,
)
from api.ports.backup import BackupSource, BackupTarget, StoredAnswer
from api.ports.document_work import Deletions, marks_for

OnStep = Callable[[str, int, int], None]
"""Told of each step: what it is of, how many are done, and how many there are, about."""


@dataclass(frozen=True, slots=True)
class BackupScope:
    """What goes into a backup. No tenants: all. `vectors`: chunks too, so that nothing has to be embedded anew."""

    documents: bool = True
    cache: bool = True
    tenants: tuple[str, ...] = ()
    vectors: bool = True


@dataclass(frozen=True, slots=True)
class BackupOrigin:
    """Who takes a backup: the release, and the schema of the keys that it knows."""

    release: str
    schema: str


async def take(
    source: BackupSource,
    deletions: Deletions,
    writer: BackupWriter,
    wanted: BackupScope,
    maker: BackupOrigin,
    on: OnStep,
) -> None:
    """Writes all of it. Raises `StoreUnavailable`."""
    now = datetime.fromtimestamp(await source.now_ms() / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    about = (now, maker.release, maker.schema, wanted.documents, wanted.cache)
    header = Header(FORMAT, *about, wanted.tenants, *await source.expected())
    writer.write(header.line())
    if wanted.documents:
        await _documents(source, writer, wanted, header.expected_documents, on)
    if wanted.cache:
        writer.write(deletions_line(marks_for(await deletions.noted(), wanted.tenants)))
        await _answers(source, writer, wanted.tenants, header.expected_answers, on)
    writer.end()


async def _documents(source: BackupSource, writer: BackupWriter, wanted: BackupScope, about: int, on: OnStep) -> None:
    async for stored in source.documents(wanted.tenants, vectors=wanted.vectors):
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
    """Which documents the answers were right for: where they changed while answers were read, nobody can say."""
    found = {}
    for tenant in tenants:
        epoch, digest = await source.corpus(tenant)
        found[tenant] = digest if before.get(tenant, 0) == epoch else ""
    return found


BATCH: Final = 100
"""Answers that are looked at together."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of a backup is restored. No tenants: all. `replace`: documents that are newer in Redis too."""

    documents: bool = True
    cache: bool = True
    tenants: tuple[str, ...] = ()
    replace: bool = False
    dry_run: bool = False

    def has(self, tenant: str) -> bool:
        """Whether this tenant's is wanted."""
        return not self.tenants or tenant in self.tenants


@dataclass(slots=True)
class Restored:
    """What became of documents and answers, by outcome."""

    documents: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)


async def put(target: BackupTarget, file: BinaryIO, backup: Checked, chosen: Chosen, on: OnStep) -> Restored:
    """`file` was checked. Raises `StoreUnavailable`, `BackupError`."""
    restored = Restored()
    if chosen.documents:
        await _put_documents(target, file, backup, chosen, restored, on)
    if chosen.cache:
        await target.put_deletions(marks_for(deletions(file), chosen.tenants), dry_run=chosen.dry_run)
        await _put_answers(target, file, backup, chosen, restored, on)
    return restored


async def _put_documents(
    target: BackupTarget, file: BinaryIO, backup: Checked, chosen: Chosen, restored: Restored, on: OnStep
) -> None:
    for stored in documents(file):
        if chosen.has(stored.document.facts.tenant):
            outcome = await target.put_document(stored, replace=chosen.replace, dry_run=chosen.dry_run)
            restored.documents[outcome] += 1
        on("documents", restored.documents.total(), backup.lines["document"])
    await target.settle()


async def _put_answers(
    target: BackupTarget, file: BinaryIO, backup: Checked, chosen: Chosen, restored: Restored, on: OnStep
) -> None:
    wanted = (answer for answer in answers(file) if chosen.has(answer.tenant))
    for batch in _batched(wanted):
        outcomes = await target.put_answers(batch, backup.corpora, dry_run=chosen.dry_run)
        restored.answers.update(outcomes)
        on("answers", restored.answers.total(), backup.lines["answer"])


def _batched(found: Iterator[StoredAnswer]) -> Iterator[Sequence[StoredAnswer]]:
    while batch := list(islice(found, BATCH)):
        yield batch
