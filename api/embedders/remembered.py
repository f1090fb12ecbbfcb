"""The latest vectors, by their text: a question asked again is not embedded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from api.model import EmbedderIdentity, Vector
from api.ports.models import Embedder

KEPT: Final = 2048
"""About 4 MiB at 384 dimensions."""


class RememberedEmbedder:
    """See `ports.Embedder`. Forgets the least recently used first, and all when the model behind it changes."""

    def __init__(self, embedder: Embedder, kept: int = KEPT) -> None:
        self._embedder = embedder
        self._kept = kept
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """See `ports.Embedder`."""
        identity = await self._embedder.identity()
        if identity != self._identity:
            self._vectors.clear()
            self._identity = identity
        return identity

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See `ports.Embedder`."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        known = {text: self._vectors[text] for text in texts if text in self._vectors}
        if missing:
            identity = self._identity
            known |= zip(missing, await self._embedder.embed(missing), strict=True)
            if identity != self._identity:
                return [known[text] for text in texts]  # the model changed meanwhile: nothing to keep
        self._keep(known)
        return [known[text] for text in texts]

    def _keep(self, vectors: dict[str, Vector]) -> None:
        for text, vector in vectors.items():
            self._vectors[text] = vector
            self._vectors.move_to_end(text)
        while len(self._vectors) > self._kept:
            self._vectors.popitem(last=False)
