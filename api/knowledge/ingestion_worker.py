"""Runs a worker's background work on documents: pending changes, re-embedding, and deleting unused chunks.

Documents of an earlier embedder are embedded again. Chunks of a replaced embedder are kept for a rollback and deleted
later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from api.cancellation import cancel_and_wait
from api.errors import EmbeddingUnavailable, RagherdError, ServiceUnavailable, StoreUnavailable
from api.knowledge.ingestion import Ingestion, in_its_language
from api.ports.coordination import LeaderLease
from api.ports.document_work import DocumentWork, Reembedding, UnusedEmbeddings, Work
from api.ports.inference import Embedder
from api.ports.telemetry import Telemetry
from api.values import EmbedderIdentity

LOOK_SECONDS: Final = 1.0
LOOKED_AT: Final = 32
"""Documents with pending work that are read at a time."""
LEASE_SECONDS: Final = 15.0


class IngestionWorker:
    """One worker's part. `leases`: the lease to embed all documents with a new embedder.

    `pace`: multiplies the pause of `LOOK_SECONDS`, since other workers look too.
    """

    def __init__(
        self,
        work: DocumentWork,
        ingestion: Ingestion,
        reembedding: Reembedding,
        embedder: Embedder,
        leases: Callable[[str], LeaderLease],
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._work = work
        self._ingestion = ingestion
        self._reembedding = reembedding
        self._embedder = embedder
        self._leases = leases
        self._pace = pace

    async def keep(self) -> None:
        """Runs until cancelled, as a background task."""
        while True:
            with suppress(StoreUnavailable):
                await self.carry_out_waiting()
            await self._pause()

    async def keep_deleting(self) -> None:
        """Runs until cancelled, as a separate task: notifying the cache of deletions must not wait for the embedder."""
        while True:
            with suppress(StoreUnavailable):
                await self.carry_out_waiting(gone=True)
            await self._pause()

    async def keep_embedding(self) -> None:
        """Runs until cancelled, as a background task."""
        while True:
            with suppress(StoreUnavailable, ServiceUnavailable, EmbeddingUnavailable):
                await self.reembed()
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(LOOK_SECONDS * self._pace() * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def carry_out_waiting(self, *, gone: bool = False) -> None:
        """Takes pending work that no other worker has, one document after the other."""
        waiting = list(await self._work.waiting(LOOKED_AT, gone=gone))
        random.shuffle(waiting)  # workers that look at the same time take different ones
        for document in waiting:
            if self._ingestion.is_at(document):
                continue
            with suppress(StoreUnavailable, RagherdError):  # an unavailable shard does not hold up other documents
                await self._ingestion.carry_out(document)

    async def reembed(self) -> None:
        """Embeds what the current embedder has not embedded, while this worker has the lease."""
        embedder = await self._embedder.identity()
        epoch = await self._reembedding.behind(embedder)
        lease = self._leases(embedder.fingerprint)
        if epoch is None or not await lease.acquire(LEASE_SECONDS):
            return
        complete = True
        async with _kept(lease):
            async for work in self._reembedding.missing(embedder):
                complete = await self._embedded(work, embedder) and complete
                if not (complete or await lease.acquire(LEASE_SECONDS)):
                    return
            if complete:
                await self._reembedding.complete(embedder, epoch)
        await lease.release()

    async def _embedded(self, work: Work, embedder: EmbedderIdentity) -> bool:
        """False if the work was void, or another worker has the lease."""
        text = await self._work.text(work.id)
        if text is None:
            return True  # deleted meanwhile
        work = await in_its_language(work, text.decode())
        done = await self._ingestion.reembed(work, embedder, text.decode())
        return done and await self._reembedding.embedded(work, embedder)


@asynccontextmanager
async def _kept(lease: LeaderLease) -> AsyncIterator[None]:
    """Renews the lease while the block runs: a document may take longer than the lease."""

    async def keep() -> None:
        held = True
        while held:
            await asyncio.sleep(LEASE_SECONDS / 5)
            held = await lease.acquire(LEASE_SECONDS)

    keeper = asyncio.create_task(keep(), name="embedding_lease")
    try:
        yield
    finally:
        await cancel_and_wait([keeper])


USE_SECONDS: Final = 10.0
"""Seconds between two reports of the embedder that a worker uses."""
CLEAN_SECONDS: Final = 60.0
CLEANING_LEASE_SECONDS: Final = 25.0


class StaleEmbeddings:
    """One worker's part. `keep`: seconds without use before deletion. `lease`: for deleting."""

    def __init__(
        self,
        embeddings: UnusedEmbeddings,
        reembedding: Reembedding,
        embedder: Embedder,
        lease: LeaderLease,
        telemetry: Telemetry,
        keep: float,
    ) -> None:
        self._embeddings = embeddings
        self._reembedding = reembedding
        self._embedder = embedder
        self._lease = lease
        self._telemetry = telemetry
        self._keep = keep

    async def keep_clean(self) -> None:
        """Runs until cancelled, as a background task."""
        due = time.monotonic() + CLEAN_SECONDS
        while True:
            with suppress(StoreUnavailable, EmbeddingUnavailable):
                await self._embeddings.use(await self._embedder.identity())
                if time.monotonic() >= due:
                    due = time.monotonic() + CLEAN_SECONDS
                    await self.clean()
            await asyncio.sleep(USE_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def clean(self) -> int:
        """Deletes unused chunks, once the current embedder has embedded everything, and indexes of earlier releases.

        Returns the number of chunks.

        Raises `StoreUnavailable`, `EmbeddingUnavailable`.
        """
        embedder = await self._embedder.identity()
        await self._embeddings.use(embedder)
        if not await self._lease.acquire(CLEANING_LEASE_SECONDS):
            return 0
        await self._embeddings.drop_earlier()
        if await self._reembedding.behind(embedder) is not None:
            return 0
        return sum([await self._removed(old) for old in await self._embeddings.unused(self._keep)])

    async def _removed(self, old: str) -> int:
        removed = 0
        async for chunks in self._embeddings.remove(old, self._keep):
            removed += chunks
            if not await self._lease.acquire(CLEANING_LEASE_SECONDS):
                break
        if removed:
            self._telemetry.embeddings_removed(old, removed)
        return removed
