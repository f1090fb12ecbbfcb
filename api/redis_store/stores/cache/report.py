"""The cache's statistics over the fleet, for the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.ports.answer_quality import QualityState
from api.ports.inference import Embedder
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.scripts import now_ms, on_all
from api.redis_store.stores.cache.semantic_index import SemanticIndex, SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import EmbedderIdentity


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The cache settings that the report includes."""

    enabled: bool
    max_size: int
    similarity_threshold: float
    ttl_seconds: float
    embedder: str
    vector_type: str


class CacheFigures:
    """Counts since the statistics began. While Redis is down: the last known ones, with `store: local`."""

    def __init__(
        self,
        redis: HealthGatedClients,
        indexes: SemanticIndexes,
        counters: CacheCounters,
        embedder: Embedder,
        limits: CacheLimits,
        quality: Callable[[], QualityState],
    ) -> None:
        self._redis = redis
        self._indexes = indexes
        self._counters = counters
        self._embedder = embedder
        self._limits = limits
        self._quality = quality

    async def report(self) -> dict[str, object]:
        """The body of GET /api/semantic-cache/metrics."""
        totals = await self._counters.totals()
        embedder = await self._identity()
        exact, semantic = totals.get("exact_hits", 0), totals.get("semantic_hits", 0)
        hits, misses = exact + semantic, totals.get("misses", 0)
        return {
            "enabled": self._limits.enabled,
            "hits": hits,
            "misses": misses,
            "hit_rate": round(hits / (hits + misses), 6) if hits + misses else 0.0,
            "cache_size": await self._size(embedder),
            "max_cache_size": self._limits.max_size,
            "exact_hits": exact,
            "semantic_hits": semantic,
            **{name: totals.get(name, 0) for name in ("stale_hits", "coalesced", "stores", "evictions")},
            **{name: totals.get(name, 0) for name in ("guard_rejections", "corrupt", "invalidations")},
            **{name: totals.get(name, 0) for name in ("quarantined", "released", "feedback_good", "feedback_bad")},
            "similarity_threshold": self._limits.similarity_threshold,
            "ttl_seconds": self._limits.ttl_seconds,
            "embedder": self._describe(embedder),
            "vector_type": self._limits.vector_type,
            "false_hit_rate": self._quality().rate.figures(),
            "store": "shared" if self._counters.are_shared else "local",
        }

    async def _identity(self) -> EmbedderIdentity | None:
        try:
            return await self._embedder.identity()
        except EmbeddingUnavailable:
            return None

    async def _size(self, embedder: EmbedderIdentity | None) -> int:
        """The entries of all partitions. Partitions that are down count as empty: nothing in them can be served."""
        if embedder is None:
            return 0
        return sum(await on_all(self._size_of(index, embedder) for index in self._indexes))

    async def _size_of(self, index: SemanticIndex, embedder: EmbedderIdentity) -> int:
        redis = self._redis.of(index.keys.invalidated)
        try:
            return await index.count(embedder, await redis.run("time", now_ms))
        except StoreUnavailable:
            return 0

    def _describe(self, embedder: EmbedderIdentity | None) -> dict[str, Any]:
        known = {"name": embedder.name, "dimension": embedder.dimension} if embedder else {}
        return {"kind": self._limits.embedder, **known}
