"""Cached answers, as changes of documents see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from api.model import EmbedderIdentity, Vector
from api.ports.passages import DocumentFilter


@dataclass(frozen=True, slots=True)
class CachedQuestion:
    """A cached answer that new documents may change, and what it was made of."""

    entry: str
    question: str
    tenant: str
    vector: Vector | None
    top_k: int
    wanted: DocumentFilter = field(default_factory=DocumentFilter)


class OutdatedAnswers(Protocol):
    """The cache, as changes of documents see it. Every method raises `StoreUnavailable`."""

    async def near(
        self, embedder: EmbedderIdentity, tenant: str, vectors: Sequence[Vector], floor: float, limit: int
    ) -> tuple[Sequence[CachedQuestion], bool]:
        """Fresh entries whose question is at least `floor` near one of the vectors; whether these are all."""

    async def incomparable(self, embedder: EmbedderIdentity, tenant: str, limit: int) -> tuple[Sequence[str], bool]:
        """Fresh entries that have no vector, or one of another embedder, or are from before there were documents;
        whether these are all.
        """

    async def expire(self, entries: Sequence[str]) -> int:
        """Ends their lifetime now: they are served only where Ollama fails."""

    async def expire_all(self, tenant: str) -> int:
        """Ends the lifetime of all that depend on the tenant's documents."""
