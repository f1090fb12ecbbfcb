"""What embedders have made of the documents, for as long as anybody may want it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from api.model import EmbedderIdentity


class UnusedEmbeddings(Protocol):
    """Chunks of embedders that no worker uses any more. Every method raises `StoreUnavailable`."""

    async def use(self, embedder: EmbedderIdentity) -> None:
        """Notes that this worker uses it now."""

    async def unused(self, keep: float) -> Sequence[str]:
        """Fingerprints of those that nobody has used for `keep` seconds."""

    def remove(self, embedder: str, keep: float) -> AsyncIterator[int]:
        """Removes all that it made, document by document: how many chunks. Ends where it is used again."""
