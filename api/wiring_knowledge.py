"""Opens what a worker has of the knowledge base: documents, passages, the work on them. A part of `wiring`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from api.background import Background
from api.knowledge.chunking import Chunker
from api.knowledge.ingestion import Ingestion
from api.knowledge.library import Library, Limits
from api.knowledge.outdating import Outdating
from api.knowledge.parsing import ParseLimits, Parser
from api.knowledge.retrieval import RetrievalPolicy, Retriever
from api.knowledge.upkeep import Upkeep
from api.observability.knowledge_events import KnowledgeEvents
from api.observability.metrics import Metrics
from api.ports.models import Embedder
from api.redis_store.cache_sweep import RedisCacheSweep
from api.redis_store.cluster_gate import ClusterGate
from api.redis_store.document_work import RedisDocumentWork
from api.redis_store.documents import RedisDocuments
from api.redis_store.duty import RedisDuty
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.outdated_answers import RedisOutdatedAnswers
from api.redis_store.passage_index import RedisPassageIndex
from api.redis_store.reembedding import RedisReembedding
from api.redis_store.semantic_indexes import SemanticIndexes
from api.settings import Settings

BATCH = {"onnx": 2, "ollama": 16}
"""Texts of a document embedded by one call: with `onnx` a question waits for them."""


class WorkerKnowledge:
    """Made by `open_knowledge`. `embedder` remembers questions; `plain` is the same without a memory."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        metrics: Metrics,
        gate: RedisGate | ClusterGate,
        indexes: SemanticIndexes,
        embedder: Embedder,
        plain: Embedder,
        count: Callable[[str], int],
    ) -> None:
        documents, retrieval = settings.documents, settings.retrieval
        keys, events = Keys(*settings.key_layout), KnowledgeEvents(metrics)
        on_new = retrieval.cache_on_new_documents if settings.cache.enabled else "none"
        work = RedisDocumentWork(gate, keys, worker)
        policy = RetrievalPolicy(
            candidates=retrieval.retrieval_candidates,
            floor=retrieval.retrieval_relevance_floor,
            neighbours=retrieval.retrieval_neighbours,
        )
        passages = RedisPassageIndex(gate, keys)
        self.retriever = Retriever(passages, embedder, None, policy)
        answers = RedisOutdatedAnswers(gate, keys, indexes)
        outdating = Outdating(RedisCacheSweep(gate, keys), answers, self.retriever, work, plain, events, on_new)
        limits = ParseLimits(
            documents.document_max_pages, documents.document_max_characters, documents.document_parse_timeout
        )
        parser = Parser(limits)
        chunker = Chunker(count, documents.chunk_tokens, documents.chunk_overlap)
        batch = BATCH[settings.embedder.embedder]
        ingestion = Ingestion(
            work, passages, parser, chunker, plain, outdating, events, batch, retrieval.retrieval_neighbours
        )
        self.library = Library(
            RedisDocuments(gate, keys),
            ingestion,
            parser,
            Limits(
                documents.document_max_bytes,
                documents.document_max_characters,
                documents.documents_max,
                documents.ingest_wait,
            ),
        )
        self._duties = lambda fingerprint: RedisDuty(gate, keys.embedding_duty(fingerprint), worker)
        self._upkeep = Upkeep(work, ingestion, RedisReembedding(gate, keys), plain, self._duties)

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What goes on for as long as the worker lives."""
        return [self._upkeep.keep, self._upkeep.keep_embedding]


@asynccontextmanager
async def open_knowledge(knowledge: WorkerKnowledge) -> AsyncIterator[WorkerKnowledge]:
    """Its background tasks run. On exit they end first, and what is under way is left to other workers."""
    async with Background() as background:
        for forever in knowledge.tasks():
            background.start(forever)
        try:
            yield knowledge
        finally:
            await knowledge.library.aclose()
