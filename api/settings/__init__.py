"""Settings from the environment or `.env`, frozen, one class per concern. docs/configuration.md lists them all.

`load_settings` turns every fault into one `SettingsError` line that names the variable.
"""

from api.settings.access import AccessSettings, access_warnings, anonymous_refusal
from api.settings.answers import CacheSettings, DocumentSettings, PartitionSettings, RetrievalSettings, ServerSettings
from api.settings.loading import (
    ONNX_CHUNK_TOKENS,
    SECRET,
    Settings,
    effective_values,
    load_settings,
    origins,
    validated_variant,
    variable_names,
)
from api.settings.models import BreakerSettings, BulkheadSettings, EmbedderSettings, OllamaSettings, PoolSettings
from api.settings.redis import PREFIX, BreakerRedisSettings, RedisSettings, is_cluster
from api.settings.tracing import TracingSettings

__all__ = [
    "ONNX_CHUNK_TOKENS",
    "PREFIX",
    "SECRET",
    "AccessSettings",
    "BreakerRedisSettings",
    "BreakerSettings",
    "BulkheadSettings",
    "CacheSettings",
    "DocumentSettings",
    "EmbedderSettings",
    "OllamaSettings",
    "PartitionSettings",
    "PoolSettings",
    "RedisSettings",
    "RetrievalSettings",
    "ServerSettings",
    "Settings",
    "TracingSettings",
    "access_warnings",
    "anonymous_refusal",
    "effective_values",
    "is_cluster",
    "load_settings",
    "origins",
    "validated_variant",
    "variable_names",
]
