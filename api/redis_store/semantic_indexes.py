"""The vector indexes of all partitions: one for each, whole on its shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.model import EmbedderIdentity
from api.ports.models import Embedder
from api.redis_store.gate import Gates
from api.redis_store.index_schema import Algorithm
from api.redis_store.keys import Keys
from api.redis_store.semantic_index import SemanticIndex


class SemanticIndexes:
    """Made before Redis is first asked for: each index is made with the first answer of its shard."""

    def __init__(self, gate: Gates, keys: Keys, algorithm: Algorithm = "flat") -> None:
        self._keys = keys
        self._all = {part: SemanticIndex(gate.of(part.invalidated), part, algorithm) for part in keys.partitions}

    def __iter__(self) -> Iterator[SemanticIndex]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def of(self, scope: str) -> SemanticIndex:
        """The one that has the entries of a scope."""
        return self._all[self._keys.partition(scope)]

    async def prepare(self, embedder: Embedder) -> None:
        """Makes them, where it is known yet who embeds, and what shard is up; else with the first look-up."""
        with suppress(EmbeddingUnavailable):
            identity = await embedder.identity()
            for index in self:  # one after the other: together they would want a connection each, at the busiest moment
                await _ensured(index, identity)


async def _ensured(index: SemanticIndex, identity: EmbedderIdentity) -> None:
    with suppress(StoreUnavailable):
        await index.ensure(identity)
