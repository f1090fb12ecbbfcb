"""What a backup is made of, where it comes from and where it goes to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.ports.document_work import EmbeddedChunk
from api.ports.documents import Document
from api.values import Vector


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that serves, as of one revision. `sets`: its chunks by embedder, complete ones only."""

    document: Document
    text: str
    sets: Mapping[str, Sequence[EmbeddedChunk]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An entry of the cache. Its times are absolute: it ages in a backup as it would have aged in Redis.

    `fields` are those of its hash but for the vector. `cites`: documents that it cites, with the digests of what served
    when it was read.
    """

    scope: str
    digest: str
    fields: Mapping[str, str]
    vector: Vector | None
    gone_ms: int
    uses: int
    cites: Mapping[str, str]

    @property
    def created_ms(self) -> int:
        """When it was generated."""
        return int(self.fields["created_ms"])

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.fields["tenant"]

    @property
    def is_grounded(self) -> bool:
        """Whether documents were looked for."""
        return "epoch" in self.fields


class BackupSource(Protocol):
    """The fleet's memory, read while the fleet works. Every method raises `StoreUnavailable`. No tenants: all."""

    async def now_ms(self) -> int:
        """Redis's clock."""

    async def expected(self) -> tuple[int, int]:
        """How many documents and answers there are, about."""

    def documents(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]:
        """Each document that serves, whole and of one revision."""

    def answers(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]:
        """Each entry whose documents serve as it cites them."""

    async def unsettled(self) -> Mapping[str, int | None]:
        """The epoch of each tenant's documents; None where the cache is being told of a change at this moment."""

    async def corpus(self, tenant: str) -> tuple[int, str]:
        """The epoch of a tenant's documents, and a digest over all that serve; it is empty while they change."""


DocumentOutcome = Literal["restored", "to embed", "unchanged", "newer kept", "refused"]
AnswerOutcome = Literal[
    "restored", "restored stale", "there already", "outdated", "deleted since", "expired", "no room"
]


class BackupTarget(Protocol):
    """Where a backup goes to, while a fleet may work there. Every method raises `StoreUnavailable`."""

    async def put_document(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome:
        """Puts a document into service, or says why not. Nothing of it serves before all of it does."""

    async def settle(self) -> None:
        """Has the cache told of all documents that were put."""

    async def put_deletions(self, marks: Mapping[str, int], *, dry_run: bool) -> None:
        """Takes over what was deleted."""

    async def put_answers(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> Sequence[AnswerOutcome]:
        """Stores answers that are right still. `corpora`: digests of the tenants' documents when they were read."""
