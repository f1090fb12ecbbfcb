"""A worker's part of the knowledge base without HTTP. Tests can pause its embedder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from redis.asyncio import Redis

from api.knowledge.chunking import estimated_tokens
from api.knowledge.document_service import Upload
from api.observability.metrics import Metrics
from api.ports.document_store import DocumentFacts
from api.ports.inference import CurrentIdentity
from api.ports.telemetry import Telemetry
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.values import EmbedderIdentity, Embedding, Vector
from api.wiring.knowledge import Embedders, WorkerKnowledge
from tests.support.service import make_settings

DIMENSION = 8


class GatedEmbedder:
    """Embeds texts by their words. After `stop_after` texts it sets `waiting` and waits for `gate`."""

    def __init__(self, name: str) -> None:
        self.embedder = EmbedderIdentity(name, DIMENSION, hashlib.sha256(name.encode()).hexdigest()[:10])
        self.current = CurrentIdentity(self.embedder)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.texts: list[str] = []
        self._stop_at: int | None = None

    def stop_after(self, texts: int) -> None:
        """Counts from now on."""
        self.waiting.clear()
        self._stop_at = len(self.texts) + texts

    async def stopped(self) -> None:
        """Returns when the embedder waits."""
        await asyncio.wait_for(self.waiting.wait(), 20)

    def go_on(self) -> None:
        self._stop_at = None
        self.gate.set()

    async def identity(self) -> EmbedderIdentity:
        return self.embedder

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        if self._stop_at is not None and len(self.texts) >= self._stop_at:
            self.gate.clear()
            self.waiting.set()
            await self.gate.wait()
        self.texts += texts
        return [Embedding(self._vector(text)) for text in texts]

    def _vector(self, text: str) -> Vector:
        row = np.full(DIMENSION, 1e-3, dtype="<f4")
        for word in text.casefold().split():
            row[hashlib.sha256(f"{self.embedder.name}{word}".encode()).digest()[0] % DIMENSION] += 1
        return bytes((row / np.linalg.norm(row)).astype("<f4").tobytes())


class Worker:
    """The document work of one worker. It has no background tasks."""

    def __init__(
        self, redis: Redis, gate: HealthGatedRedis, name: str, embedder: GatedEmbedder, sizes: Mapping[str, Any]
    ):
        documents = {"chunk_tokens": 16, "chunk_overlap": 0, "ingest_wait": 0.0, **sizes}
        settings = make_settings("redis://unused", "http://unused", documents=documents, embedder={"embedder": "onnx"})
        indexes = SemanticIndexes(gate, Keys())
        embedders = Embedders(embedder, embedder, estimated_tokens)
        self.knowledge = WorkerKnowledge(settings, name, Metrics(), Telemetry(), gate, indexes, embedder, embedders)
        self.embedder = embedder
        self.gate = gate
        self.redis = redis

    def give(self, source: str, text: str) -> asyncio.Task[Any]:
        """Uploads a document and processes it in the background."""
        facts = DocumentFacts("default", source, source=source)
        return asyncio.create_task(self.knowledge.documents.add(Upload(facts, text.encode(), "text/plain")))

    async def store(self, source: str, text: str) -> str:
        """Uploads a document, waits until it is ready, and returns its ID."""
        document = (await self.give(source, text)).document.id
        while (await self.knowledge.documents.find(document)).status == "processing":
            await self.knowledge.ingestion_worker.carry_out_waiting()
        return str(document)

    async def stopped(self, source: str, text: str, after: int = 0) -> str:
        """Uploads a document, stops after some of its chunks are embedded, and returns its ID."""
        self.embedder.stop_after(after)
        added = await self.give(source, text)
        await self.embedder.stopped()
        return str(added.document.id)

    async def go_on(self) -> None:
        """Continues until all started work has ended."""
        self.embedder.go_on()
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "ingestion"]
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)


@asynccontextmanager
async def worker(redis_url: str, name: str, embedder: GatedEmbedder, **sizes: Any) -> AsyncIterator[Worker]:
    """Opens a worker with its own connections. `sizes` are settings of documents."""
    async with BatchingRedis.from_url(redis_url, protocol=3) as redis:
        gate = HealthGatedRedis(redis, 8)
        await gate.check()
        made = Worker(redis, gate, name, embedder, sizes)
        try:
            yield made
        finally:
            embedder.go_on()
            await made.knowledge.documents.aclose()


async def lease_ended(redis: Redis, document: str) -> None:
    """Ends the lease of a worker, as if the worker had paused for longer."""
    await redis.hset(Keys().document_work(document), "held_until_ms", "0")
