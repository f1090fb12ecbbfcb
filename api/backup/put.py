"""Restores a backup: documents first, then the answers that are right for what serves by then.

Doing it again changes nothing: it goes on where it was broken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Final

from api.backup.reading import Checked, answers, deletions, documents
from api.backup.take import OnStep
from api.ports.backup import BackupTarget, StoredAnswer
from api.ports.deletions import marks_for

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
        await _documents(target, file, backup, chosen, restored, on)
    if chosen.cache:
        await target.put_deletions(marks_for(deletions(file), chosen.tenants), dry_run=chosen.dry_run)
        await _answers(target, file, backup, chosen, restored, on)
    return restored


async def _documents(
    target: BackupTarget, file: BinaryIO, backup: Checked, chosen: Chosen, restored: Restored, on: OnStep
) -> None:
    for stored in documents(file):
        if chosen.has(stored.document.facts.tenant):
            outcome = await target.put_document(stored, replace=chosen.replace, dry_run=chosen.dry_run)
            restored.documents[outcome] += 1
        on("documents", restored.documents.total(), backup.lines["document"])
    await target.settle()


async def _answers(
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
