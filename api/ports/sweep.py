"""Taking answers back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from api.model import EmbedderIdentity, Vector


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Questions that are near one: `similarity` is the least cosine, `vector` the question's by `embedder`."""

    embedder: EmbedderIdentity
    vector: Vector
    similarity: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries are meant: those for which everything given holds. Where nothing is given, all.

    `digest` is a question's, to the letter; with `near`, those near it are meant too. `source` is a document that the
    answer's sources cite.
    """

    entry: str | None = None
    digest: str | None = None
    near: Neighbourhood | None = None
    source: str | None = None
    tenant: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """Entries that were meant, and those of them that were deleted. `complete` is false where time ran out."""

    matched: int
    deleted: int
    complete: bool = True


class CacheSweep(Protocol):
    """Finds and deletes entries of the whole fleet. Raises `StoreUnavailable`."""

    async def sweep(self, selection: Selection, *, dry_run: bool) -> Swept:
        """Deletes what is meant. What was asked before and is answered later is not stored either."""

    async def outdate(self, tenant: str) -> None:
        """Notes that documents of the tenant changed: what is answered from what they were is not stored as it is."""
