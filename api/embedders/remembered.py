"""Caches the latest embeddings per tenant by text, so a repeated question is not embedded again.

Tenants share nothing: the response time would reveal that another tenant has asked the same question.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from api.ports.models import Embedder
from api.values import EmbedderIdentity, Embedding

MAX_ENTRIES: Final = 2048
"""About 4 MiB at 384 dimensions, for all tenants together."""


class RememberedEmbedder:
    """An embedder with a cache, which is cleared when the model changes.

    If the cache is full, the tenant with the most entries loses its least recently used one. A tenant with no more than
    an equal share therefore loses nothing to others.
    """

    def __init__(self, embedder: Embedder, max_entries: int = MAX_ENTRIES) -> None:
        self.current = embedder.current
        self._embedder = embedder
        self._max_entries = max_entries
        self._count = 0
        self._by_tenant: dict[str, OrderedDict[str, Embedding]] = {}
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """Clears the cache if the identity has changed."""
        identity = await self._embedder.identity()
        if identity != self._identity:
            self._clear(identity)
        return identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text, in order."""
        if self.current.value not in (None, self._identity):
            self._clear(self.current.value)
        remembered: Mapping[str, Embedding] = self._by_tenant.get(tenant, {})
        known = {text: remembered[text] for text in texts if text in remembered}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            identity = self._identity
            known |= zip(missing, await self._embedder.embed(missing, tenant=tenant), strict=True)
            if identity != self._identity:
                return [known[text] for text in texts]  # the model changed meanwhile: cache nothing
        self._store(tenant, known)
        return [known[text] for text in texts]

    def _clear(self, identity: EmbedderIdentity | None) -> None:
        self._by_tenant.clear()
        self._count = 0
        self._identity = identity

    def _store(self, tenant: str, embeddings: dict[str, Embedding]) -> None:
        own = self._by_tenant.setdefault(tenant, OrderedDict())
        before = len(own)
        for text, embedding in embeddings.items():
            own[text] = embedding
            own.move_to_end(text)
        self._count += len(own) - before
        while self._count > self._max_entries:
            self._evict()

    def _evict(self) -> None:
        tenant = max(self._by_tenant, key=lambda one: len(self._by_tenant[one]))
        self._by_tenant[tenant].popitem(last=False)
        self._count -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
