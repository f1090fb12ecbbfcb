"""The vector indexes of all partitions: one for each, whole on its shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.model import EmbedderIdentity
from api.ports.models import Embedder
from api.redis_store.gate import Gates
from api.redis_store.index_schema import Algorithm
from api.redis_store.keys import Keys
from api.redis_store.semantic_index import SemanticIndex


class SemanticIndexes:
    """`on_unsupported` is told once of a search module that is missing, however many partitions lack it."""

    def __init__(
        self, gate: Gates, keys: Keys, on_unsupported: Callable[[], None], algorithm: Algorithm = "flat"
    ) -> None:
        self._keys = keys
        self._on_unsupported = on_unsupported
        self._all = {
            part: SemanticIndex(gate.of(part.invalidated), part, self._missed, algorithm) for part in keys.partitions
        }

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
            await asyncio.gather(*(_ensured(index, identity) for index in self))

    def _missed(self) -> None:
        if all(index.supported for index in self):
            self._on_unsupported()


async def _ensured(index: SemanticIndex, identity: EmbedderIdentity) -> None:
    with suppress(StoreUnavailable):
        await index.ensure(identity)
