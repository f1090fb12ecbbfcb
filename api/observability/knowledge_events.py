"""Who counts and logs what happens to documents."""

from __future__ import annotations

from typing import Literal

import structlog

from api.errors import RerankingUnavailable
from api.observability.metrics import Metrics


class KnowledgeEvents:
    """An `IngestionEvents`, an `OutdatingEvents` and a `RerankingEvents`. A document's text is not logged."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("ragherd.knowledge")

    def document_stored(self, chunks: int) -> None:
        """A revision serves."""
        self._metrics.document_stored()
        self._log.info("document_stored", chunks=chunks)

    def document_failed(self, document: str, error: str) -> None:
        """A document that was accepted can not be stored."""
        self._metrics.document_failed()
        self._log.warning("document_failed", document=document, error=error)

    def document_delayed(self, document: str, reason: str) -> None:
        """The embedder fails: the document is put off for the first time in a row."""
        self._log.warning("document_delayed", document=document, reason=reason)

    def chunk_not_embedded(self, document: str, chunk: int, reason: str) -> None:
        """The embedder cannot embed a text."""
        self._metrics.chunk_not_embedded()
        self._log.warning("chunk_not_embedded", document=document, chunk=chunk, reason=reason)

    def chunks_embedded(self, count: int) -> None:
        """Chunks were written."""
        self._metrics.chunks_embedded(count)

    def embeddings_removed(self, embedder: str, chunks: int) -> None:
        """Chunks of an embedder that nobody uses any more are gone."""
        self._log.info("embeddings_removed", embedder=embedder, chunks=chunks)

    def answers_outdated(self, reason: Literal["changed", "affected"], count: int) -> None:
        """The cache was told of a change."""
        if count:
            self._metrics.answers_outdated(reason, count)
            self._log.info("answers_outdated", reason=reason, count=count)

    def reranked(self, seconds: float) -> None:
        """A question's passages were put in the re-ranker's order."""
        self._metrics.reranked("reranked", seconds)

    def reranking_failed(self, error: RerankingUnavailable, seconds: float) -> None:
        """They stay as they were found."""
        self._metrics.reranked("failed", seconds)
        self._log.warning("reranking_unavailable", error=str(error))
