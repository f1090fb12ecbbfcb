"""An embedder on Ollama, behind a circuit breaker of its own: an embedding runner can hang while the rest answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from api.errors import BreakerOpen, EmbeddingUnavailable, UpstreamError
from api.model import EmbedderIdentity, Vector
from api.ports import Breaker, Embedder


class GuardedEmbedder:
    """See `ports.Embedder`. An open breaker is `EmbeddingUnavailable`: a miss of the semantic tier, at no cost."""

    def __init__(self, embedder: Embedder, breaker: Breaker) -> None:
        self._embedder = embedder
        self._breaker = breaker

    async def identity(self) -> EmbedderIdentity:
        """See `ports.Embedder`."""
        return await self._embedder.identity()

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See `ports.Embedder`."""
        started = time.monotonic()
        try:
            async with self._breaker.attempt() as attempt:
                try:
                    vectors = await self._embedder.embed(texts)
                except EmbeddingUnavailable as error:
                    if _speaks_against_ollama(error):
                        await attempt.failed(time.monotonic() - started)
                    raise
                await attempt.succeeded(time.monotonic() - started)
                return vectors
        except BreakerOpen as error:
            raise EmbeddingUnavailable(str(error)) from error


def _speaks_against_ollama(error: EmbeddingUnavailable) -> bool:
    cause = error.__cause__
    return not isinstance(cause, UpstreamError) or cause.row.breaker == "failure"
