"""Chunks of an embedder that was changed for another: kept for rolling back, and removed after a safe time."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Final, Protocol

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.ports.document_work import Reembedding
from api.ports.embeddings import UnusedEmbeddings
from api.ports.fleet import Duty
from api.ports.models import Embedder

USE_SECONDS: Final = 10.0
"""How often a worker says which embedder it uses."""
CLEAN_SECONDS: Final = 60.0
DUTY_SECONDS: Final = 25.0


class OldEmbeddingEvents(Protocol):
    """Who is told."""

    def embeddings_removed(self, embedder: str, chunks: int) -> None: ...


class OldEmbeddings:
    """One worker's part. `keep`: seconds without use after which they go. `duty`: one worker of the fleet removes."""

    def __init__(
        self,
        embeddings: UnusedEmbeddings,
        anew: Reembedding,
        embedder: Embedder,
        duty: Duty,
        events: OldEmbeddingEvents,
        keep: float,
    ) -> None:
        self._embeddings = embeddings
        self._anew = anew
        self._embedder = embedder
        self._duty = duty
        self._events = events
        self._keep = keep

    async def keep_clean(self) -> None:
        """For ever. A task of the worker's."""
        due = time.monotonic() + CLEAN_SECONDS
        while True:
            with suppress(StoreUnavailable, EmbeddingUnavailable):
                await self._embeddings.use(await self._embedder.identity())
                if time.monotonic() >= due:
                    due = time.monotonic() + CLEAN_SECONDS
                    await self.clean()
            await asyncio.sleep(USE_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def clean(self) -> int:
        """Removes what nobody uses, once the present embedder has embedded all itself: how many chunks.

        Raises `StoreUnavailable`, `EmbeddingUnavailable`.
        """
        embedder = await self._embedder.identity()
        await self._embeddings.use(embedder)
        if await self._anew.behind(embedder) is not None or not await self._duty.hold(DUTY_SECONDS):
            return 0
        return sum([await self._removed(old) for old in await self._embeddings.unused(self._keep)])

    async def _removed(self, old: str) -> int:
        removed = 0
        async for chunks in self._embeddings.remove(old, self._keep):
            removed += chunks
            if not await self._duty.hold(DUTY_SECONDS):
                break
        if removed:
            self._events.embeddings_removed(old, removed)
        return removed
