"""Where a backup is restored to: a Redis that may be empty, or that a fleet is working in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.ports.backup import AnswerOutcome, DocumentOutcome, StoredAnswer, StoredDocument
from api.ports.deletions import Deletions
from api.redis_store.restore_answers import AnswerWriter
from api.redis_store.restore_documents import DocumentWriter


class RedisBackupTarget:
    """See `ports.BackupTarget`."""

    def __init__(self, documents: DocumentWriter, answers: AnswerWriter, deletions: Deletions) -> None:
        self._documents = documents
        self._answers = answers
        self._deletions = deletions

    async def put_document(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome:
        """See `ports.BackupTarget`."""
        outcome = await self._documents.put(stored, replace=replace, dry_run=dry_run)
        if dry_run and outcome == "restored":
            self._answers.assumed[stored.document.id] = stored.document.digest
        return outcome

    async def settle(self) -> None:
        """See `ports.BackupTarget`."""
        await self._documents.settle()

    async def put_deletions(self, marks: Mapping[str, int], *, dry_run: bool) -> None:
        """See `ports.BackupTarget`."""
        if dry_run:
            self._answers.assumed_deletions = marks
        else:
            await self._deletions.merge(marks)

    async def put_answers(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> Sequence[AnswerOutcome]:
        """See `ports.BackupTarget`."""
        return await self._answers.put(answers, corpora, dry_run=dry_run)
