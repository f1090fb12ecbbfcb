"""The latest embeddings of each tenant, by their text: a question asked again is not embedded again.

No tenant is answered from what another has asked: the time of a call would tell that it was asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from api.ports.models import Embedder
from api.values import EmbedderIdentity, Embedding

MAX_ENTRIES: Final = 2048
"""About 4 MiB at 384 dimensions, of all tenants together."""


class RememberedEmbedder:
    """An embedder that remembers recent texts.

    Forgets all when the model behind it changes.

    Where there are too many, the tenant with the most loses its least recently used one: nobody can take from a tenant
    that has no more than its equal share.
    """

    def __init__(self, embedder: Embedder, kept: int = MAX_ENTRIES) -> None:
        self.current = embedder.current
        self._embedder = embedder
        self._kept = kept
        self._count = 0
        self._by_tenant: dict[str, OrderedDict[str, Embedding]] = {}
        self._identity: EmbedderIdentity | None = None

    async def identity(self) -> EmbedderIdentity:
        """The identity of the embedding model. Raises `EmbeddingUnavailable` while it is unknown."""
        identity = await self._embedder.identity()
        if identity != self._identity:
            self._forget_all(identity)
        return identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """One embedding per text, in order. Raises `EmbeddingUnavailable` on a fault or after its deadline.

        `tenant` owns the texts: no other tenant's calls become faster because of them.
        """
        if self.current.value not in (None, self._identity):
            self._forget_all(self.current.value)
        remembered: Mapping[str, Embedding] = self._by_tenant.get(tenant, {})
        known = {text: remembered[text] for text in texts if text in remembered}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            identity = self._identity
            known |= zip(missing, await self._embedder.embed(missing, tenant=tenant), strict=True)
            if identity != self._identity:
                return [known[text] for text in texts]  # the model changed meanwhile: nothing to keep
        self._keep(tenant, known)
        return [known[text] for text in texts]

    def _forget_all(self, identity: EmbedderIdentity | None) -> None:
        self._by_tenant.clear()
        self._count = 0
        self._identity = identity

    def _keep(self, tenant: str, embeddings: dict[str, Embedding]) -> None:
        own = self._by_tenant.setdefault(tenant, OrderedDict())
        before = len(own)
        for text, embedding in embeddings.items():
            own[text] = embedding
            own.move_to_end(text)
        self._count += len(own) - before
        while self._count > self._kept:
            self._forget_one()

    def _forget_one(self) -> None:
        tenant = max(self._by_tenant, key=lambda one: len(self._by_tenant[one]))
        self._by_tenant[tenant].popitem(last=False)
        self._count -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
