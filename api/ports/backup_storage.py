"""The content of a backup, and the protocols of its source and its target."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.ports.document_store import Document
from api.ports.document_work import EmbeddedChunk
from api.values import Vector


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document in service, of one revision. `sets`: its chunks by embedder, complete sets only."""

    document: Document
    text: str
    sets: Mapping[str, Sequence[EmbeddedChunk]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A cached answer. Its times are absolute: it ages in a backup as it does in Redis.

    `fields`: the fields of its hash without the vector. `cites`: the documents it cites, with their digests when it was
    read.
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
        """Time of generation, in milliseconds since 1970."""
        return int(self.fields["created_ms"])

    @property
    def tenant(self) -> str:
        """The tenant it belongs to."""
        return self.fields["tenant"]

    @property
    def release(self) -> str:
        """The release that stored it; empty for an answer of an older release."""
        return self.fields.get("release", "")

    @property
    def is_grounded(self) -> bool:
        """True if the documents were searched."""
        return "epoch" in self.fields


class BackupSource(Protocol):
    """The fleet's data, read while the fleet works. Every method raises `StoreUnavailable`. No tenants means all."""

    async def now_ms(self) -> int: ...

    async def expected(self) -> tuple[int, int]: ...

    def documents(self, tenants: Collection[str], *, vectors: bool) -> AsyncIterator[StoredDocument]: ...

    def answers(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]: ...

    async def unsettled(self) -> Mapping[str, int | None]: ...

    async def corpus(self, tenant: str) -> tuple[int, str]: ...


DocumentOutcome = Literal["restored", "to embed", "unchanged", "newer kept", "erased since", "refused"]
AnswerOutcome = Literal[
    "restored", "restored stale", "there already", "outdated", "deleted since", "expired", "no room"
]


class BackupTarget(Protocol):
    """The target of a restore, which a fleet may be using meanwhile. Every method raises `StoreUnavailable`."""

    async def put_document(self, stored: StoredDocument, *, replace: bool, dry_run: bool) -> DocumentOutcome: ...

    async def settle(self) -> None: ...

    async def rewind(self, after_ms: int, tenants: Collection[str], *, dry_run: bool) -> int: ...

    async def put_deletions(self, tags: Mapping[str, int], *, dry_run: bool) -> None: ...

    async def put_answers(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> Sequence[AnswerOutcome]: ...
