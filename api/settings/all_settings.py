"""All settings of a worker, as one value."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from api.settings.access import AccessSettings
from api.settings.answers import CacheSettings, DocumentSettings, PartitionSettings, RetrievalSettings
from api.settings.models import BreakerSettings, BulkheadSettings, EmbedderSettings, OllamaSettings, PoolSettings
from api.settings.redis import BreakerRedisSettings, RedisSettings
from api.settings.service import ServerSettings

ON_A_CLUSTER = 16
"""Partitions of the cache on a cluster, unless CACHE_PARTITIONS says otherwise."""


class Settings(BaseModel):
    """All settings of a worker."""

    model_config = ConfigDict(frozen=True)
    server: ServerSettings = Field(default_factory=ServerSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    breaker_redis: BreakerRedisSettings = Field(default_factory=BreakerRedisSettings)
    ollama: OllamaSettings = Field(default_factory=OllamaSettings)
    embedder: EmbedderSettings = Field(default_factory=EmbedderSettings)
    pool: PoolSettings = Field(default_factory=PoolSettings)
    bulkhead: BulkheadSettings = Field(default_factory=BulkheadSettings)
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    partitions: PartitionSettings = Field(default_factory=PartitionSettings)
    documents: DocumentSettings = Field(default_factory=DocumentSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)

    @property
    def cache_partitions(self) -> int:
        """Partitions of the cache."""
        return self.partitions.cache_partitions or (ON_A_CLUSTER if self.redis.is_cluster else 1)

    @property
    def partition_size(self) -> int:
        """Entries of one partition: whatever the scopes, all partitions together hold no more than is set."""
        return max(1, self.cache.max_size // self.cache_partitions)

    @property
    def key_layout(self) -> tuple[str, int, bool]:
        """What keys in Redis depend on: their prefix, the partitions of the cache, and whether it is a cluster."""
        return self.redis.prefix, self.cache_partitions, self.redis.is_cluster
