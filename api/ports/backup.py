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
    """The fleet's data, read while the fleet works. Every method raises `StoreUnavailable`. No tenants means all."""

    async def now_ms(self) -> int: ...

    async def expected(self) -> tuple[int, int]: ...

    def documents(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]: ...

    def answers(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]: ...

    async def unsettled(self) -> Mapping[str, int | None]: ...

    async def corpus(self, tenant: str) -> tuple[int, str]: ...


DocumentOutcome = Literal["restored", "to embed", "unchanged", "newer kept", "refused"]
AnswerOutcome = Literal[
    "restored", "restored stale", "there already", "outdated", "deleted since", "expired", "no room"
]


class BackupTarget(Protocol):
    """Where a backup is restored, while a fleet may work there. Every method raises `StoreUnavailable`."""

    async def put_document(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome: ...

    async def settle(self) -> None: ...

    async def put_deletions(self, tags: Mapping[str, int], *, dry_run: bool) -> None: ...

    async def put_answers(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> Sequence[AnswerOutcome]: ...
