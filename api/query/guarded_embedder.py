"""An embedder on Ollama, behind a bulkhead and a circuit breaker of its own: an embedding runner can hang by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from api.errors import BreakerOpen, BulkheadFull, EmbeddingUnavailable, UpstreamError
from api.model import EmbedderIdentity, Embedding
from api.ports.models import Embedder
from api.ports.resilience import Breaker, Bulkhead


class GuardedEmbedder:
    """See `ports.Embedder`. An open breaker or a full bulkhead is `EmbeddingUnavailable`: a semantic miss."""

    def __init__(self, embedder: Embedder, bulkhead: Bulkhead, breaker: Breaker) -> None:
        self._embedder = embedder
        self._bulkhead = bulkhead
        self._breaker = breaker

    async def identity(self) -> EmbedderIdentity:
        """See `ports.Embedder`."""
        return await self._embedder.identity()

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """See `ports.Embedder`."""
        try:
            self._breaker.check()
            async with self._bulkhead.permit(tenant), self._breaker.attempt() as attempt:
                started = time.monotonic()
                try:
                    embeddings = await self._embedder.embed(texts, tenant=tenant)
                except EmbeddingUnavailable as error:
                    if _speaks_against_ollama(error):
                        await attempt.failed(time.monotonic() - started)
                    raise
                await attempt.succeeded(time.monotonic() - started)
                return embeddings
        except (BulkheadFull, BreakerOpen) as error:
            raise EmbeddingUnavailable(str(error)) from error


def _speaks_against_ollama(error: EmbeddingUnavailable) -> bool:
    cause = error.__cause__
    return not isinstance(cause, UpstreamError) or cause.row.breaker == "failure"
