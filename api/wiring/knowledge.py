"""Opens the knowledge base's parts of a worker: documents, passages and their background work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from api.cancellation import Background
from api.embedders.reranker import OnnxReranker
from api.knowledge.cache_invalidator import CacheInvalidator
from api.knowledge.chunk_embedding import EmbeddedText
from api.knowledge.chunking import Chunker
from api.knowledge.document_service import DocumentService, Limits
from api.knowledge.ingestion import Charge, Ingestion
from api.knowledge.ingestion_worker import IngestionWorker, StaleEmbeddings
from api.knowledge.kinds import readable
from api.knowledge.parsing import ParseLimits, Parser
from api.knowledge.ranking import Reranking
from api.knowledge.retrieval import RetrievalPolicy, Retriever
from api.observability.metrics import Metrics
from api.ports.inference import Embedder, Reranker
from api.ports.telemetry import Telemetry
from api.redis_store.client import AnyHealthGated
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.invalidation import RedisInvalidationTags
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.cache.sweep import RedisCacheSweep
from api.redis_store.stores.documents.document_records import RedisDocuments
from api.redis_store.stores.documents.embeddings import RedisReembedding, RedisUnusedEmbeddings
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.redis_store.stores.documents.work import RedisDocumentWork
from api.redis_store.stores.fleet import RedisLeaderLease
from api.settings import Settings
from api.values import BatchSize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCHES = {"onnx": BatchSize(2, most=2), "ollama": BatchSize(most=16)}
"""Texts per embedding call and per write: Redis does nothing else until it has indexed them."""


@dataclass(frozen=True, slots=True)
class Embedders:
    """`questions` never waits for `documents`. `limit`: tokens that the model reads at once, if known."""

    questions: Embedder
    documents: Embedder
    count: Callable[[str], int]
    limit: int | None = None
    tokenizer: Tokenizer | None = None


class WorkerKnowledge:
    """One worker's parts. `embedder` caches questions. `reranker` may be None."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        metrics: Metrics,
        telemetry: Telemetry,
        client: AnyHealthGated,
        indexes: SemanticIndexes,
        embedder: Embedder,
        embedders: Embedders,
        reranker: Reranker | None = None,
        pace: Callable[[], float] = lambda: 1.0,
        charge: Charge | None = None,
    ) -> None:
        keys = Keys(*settings.key_layout)
        work, passages = RedisDocumentWork(client, keys, worker, readable()), RedisPassageIndex(client, keys)
        retrieval, plain = settings.retrieval, embedders.documents
        reranking = None
        if reranker is not None:
            metrics.reranking_known()
            reranking = Reranking(reranker, retrieval.rerank_candidates, telemetry)
        self.retriever = Retriever(passages, embedder, reranking, _retrieval_policy(settings))
        on_new = retrieval.cache_on_new_documents if settings.cache.enabled else "none"
        answers = RedisInvalidationTags(client, keys, indexes)
        sweep = RedisCacheSweep(client, keys)
        invalidator = CacheInvalidator(sweep, answers, self.retriever, work, plain, telemetry, on_new)
        parser = Parser(_parse_limits(settings))
        ingestion = Ingestion(
            work,
            passages,
            parser,
            Chunker(embedders.count, *_chunk_sizes(settings), embedders.tokenizer),
            EmbeddedText(embedders.count, embedders.limit),
            plain,
            invalidator,
            telemetry,
            BATCHES[settings.embedder.embedder],
            settings.documents.document_embed_patience,
            retrieval.retrieval_neighbours,
            charge,
        )
        self.documents = DocumentService(RedisDocuments(client, keys), ingestion, parser, _limits(settings))
        leases, reembedding = partial(_embedding_lease, client, keys, worker), RedisReembedding(client, keys, worker)
        self.ingestion_worker = IngestionWorker(work, ingestion, reembedding, plain, leases, pace)
        janitor, kept = RedisLeaderLease(client, keys.janitor, worker), settings.documents.unused_embeddings_keep
        self._old = StaleEmbeddings(RedisUnusedEmbeddings(client, keys), reembedding, plain, janitor, telemetry, kept)

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks for the worker's lifetime."""
        return [
            self.ingestion_worker.keep,
            self.ingestion_worker.keep_deleting,
            self.ingestion_worker.keep_embedding,
            self._old.keep_clean,
        ]


def _retrieval_policy(settings: Settings) -> RetrievalPolicy:
    retrieval = settings.retrieval
    return RetrievalPolicy(
        candidates=retrieval.retrieval_candidates,
        floor=retrieval.retrieval_relevance_floor,
        neighbours=retrieval.retrieval_neighbours,
    )


def _chunk_sizes(settings: Settings) -> tuple[int, int]:
    return settings.documents.chunk_tokens, settings.documents.chunk_overlap


def _parse_limits(settings: Settings) -> ParseLimits:
    documents = settings.documents
    return ParseLimits(
        documents.document_max_pages,
        documents.document_max_characters,
        documents.document_parse_timeout,
        documents.ocr_languages,
        documents.chunk_tokens,
    )


def _limits(settings: Settings) -> Limits:
    documents = settings.documents
    return Limits(
        documents.document_max_bytes, documents.document_max_characters, documents.documents_max, documents.ingest_wait
    )


def _embedding_lease(client: AnyHealthGated, keys: Keys, worker: str, fingerprint: str) -> RedisLeaderLease:
    return RedisLeaderLease(client, keys.embedding_lease(fingerprint), worker)


async def open_reranker(stack: AsyncExitStack, settings: Settings) -> Reranker | None:
    """None if RERANK_MODEL_PATH is unset. Raises `SettingsError` if it does not name a cross-encoder."""
    retrieval = settings.retrieval
    if retrieval.rerank_model_path is None:
        return None
    opening = OnnxReranker.open(retrieval.rerank_model_path, retrieval.rerank_timeout)
    return await stack.enter_async_context(opening)


@asynccontextmanager
async def open_knowledge(knowledge: WorkerKnowledge) -> AsyncIterator[WorkerKnowledge]:
    """Runs its background tasks. On exit they end first, and other workers take over unfinished work."""
    async with Background() as background:
        for forever in knowledge.tasks():
            background.start(forever)
        try:
            yield knowledge
        finally:
            await knowledge.documents.aclose()
