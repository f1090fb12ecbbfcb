"""Load all settings and check them together. Every error is one line that names the variable."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from api.errors import SettingsError
from api.loopback import is_secure
from api.settings.access import AccessSettings, anonymous_refusal
from api.settings.answers import (
    CacheSettings,
    DocumentSettings,
    PartitionSettings,
    RetrievalSettings,
    ServerSettings,
    SettingsGroup,
)
from api.settings.models import BreakerSettings, BulkheadSettings, EmbedderSettings, OllamaSettings, PoolSettings
from api.settings.redis import BreakerRedisSettings, RedisSettings, check_tls_files
from api.settings.tracing import TracingSettings

ON_A_CLUSTER = 16
"""Partitions of the cache on a cluster if CACHE_PARTITIONS is unset."""


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
    tracing: TracingSettings = Field(default_factory=TracingSettings)

    @property
    def cache_partitions(self) -> int:
        """Partitions of the cache."""
        return self.partitions.cache_partitions or (ON_A_CLUSTER if self.redis.is_cluster else 1)

    @property
    def partition_size(self) -> int:
        """Maximum entries of one partition. All partitions together never exceed the setting."""
        return max(1, self.cache.max_size // self.cache_partitions)

    @property
    def key_layout(self) -> tuple[str, int, bool]:
        """The prefix, the number of cache partitions, and whether Redis is a cluster. Key names depend on these."""
        return self.redis.prefix, self.cache_partitions, self.redis.is_cluster


ONNX_CHUNK_TOKENS = 224
"""MiniLM reads 256 tokens. The rest is for special tokens, the title and the headings."""


def _check_ports(settings: Settings) -> None:
    server = settings.server
    if server.port and server.port == server.metrics_port:
        raise SettingsError(f"METRICS_PORT: {server.port} is also PORT; choose another port")


def _check_redis_tls(settings: Settings) -> None:
    redis = settings.redis
    files = {"REDIS_CA_FILE": redis.ca_file, "REDIS_CERT_FILE": redis.cert_file, "REDIS_KEY_FILE": redis.key_file}
    given = [variable for variable, path in files.items() if path]
    urls = [redis.url, settings.breaker_redis.url or ""]
    if given and not any(url.startswith("rediss") for url in urls):
        raise SettingsError(f"{given[0]}: needs TLS, but REDIS_URL does not begin with rediss")
    check_tls_files(*files.values())


def _check_sentinels(settings: Settings) -> None:
    if settings.redis.sentinel_username and not settings.redis.sentinel_password:
        raise SettingsError("REDIS_SENTINEL_USERNAME: needs REDIS_SENTINEL_PASSWORD")


def check_together(settings: Settings) -> None:
    """Raise `SettingsError` if valid values contradict each other."""
    _check_ports(settings)
    _check_redis_tls(settings)
    _check_sentinels(settings)
    _check_access(settings)
    _check_backends(settings)
    _check_documents(settings)


def _check_access(settings: Settings) -> None:
    access = settings.access
    _keys("API_KEYS", access.tenants_by_key)
    _keys("ADMIN_KEYS", access.users_and_admins)
    _keys("BATCH_KEYS", access.batch)
    _keys("ENCRYPTION_KEYS", access.encryption_ring)
    if access.oidc_issuer and not access.oidc_audience:
        raise SettingsError("OIDC_AUDIENCE: OIDC_ISSUER needs it, so that tokens for other services are refused")
    if access.oidc_issuer and not is_secure(access.oidc_issuer):
        raise SettingsError("OIDC_ISSUER: must be https, except on this machine")
    if refusal := anonymous_refusal(access, settings.server.host):
        raise SettingsError(refusal)


def _keys(variable: str, read: Callable[[], object]) -> None:
    try:
        read()
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None


def _check_backends(settings: Settings) -> None:
    pool, urls = settings.pool, settings.ollama.base_urls
    if pool.min_size > pool.max_size:
        raise SettingsError(
            f"CONNECTION_POOL_MIN_SIZE: {pool.min_size} is more than CONNECTION_POOL_MAX_SIZE ({pool.max_size})"
        )
    if not urls:
        raise SettingsError("OLLAMA_BASE_URL: no URL given")
    if len(set(urls)) < len(urls):
        raise SettingsError("OLLAMA_BASE_URL: the list contains the same URL twice")


def _check_documents(settings: Settings) -> None:
    documents, embedder = settings.documents, settings.embedder
    if documents.chunk_overlap >= documents.chunk_tokens:
        raise SettingsError("CHUNK_OVERLAP: must be less than CHUNK_TOKENS")
    if embedder.embedder == "onnx" and documents.chunk_tokens > ONNX_CHUNK_TOKENS:
        raise SettingsError(
            f"CHUNK_TOKENS: at most {ONNX_CHUNK_TOKENS} with EMBEDDER=onnx, because its model reads no more"
        )
    paths = {
        "EMBED_MODEL_PATH": embedder.embed_model_path,
        "RERANK_MODEL_PATH": settings.retrieval.rerank_model_path,
        "SEMANTIC_CACHE_VERIFIER_PATH": settings.cache.verifier_path,
    }
    for variable, path in paths.items():
        if path and path != BUILTIN:
            _check_model(variable, Path(path))
    template = settings.retrieval.prompt_template_path
    if template and not Path(template).is_file():
        raise SettingsError("PROMPT_TEMPLATE_PATH: no such file")


def _check_model(variable: str, path: Path) -> None:
    """Check that the files exist. Their content is checked when they are loaded."""
    if not path.exists():
        raise SettingsError(f"{variable}: no such file or directory")
    folder, weights = (path, "model.onnx") if path.is_dir() else (path.parent, path.name)
    for name in (weights, "tokenizer.json"):
        if not (folder / name).is_file():
            raise SettingsError(f"{variable}: {name} is missing in {folder}")


BUILTIN: Final = "builtin"
"""SEMANTIC_CACHE_VERIFIER_PATH of the shipped model."""
SECRET: Final = {
    "API_KEYS",
    "ADMIN_KEYS",
    "BATCH_KEYS",
    "ENCRYPTION_KEYS",
    "REDIS_URL",
    "REDIS_SENTINEL_PASSWORD",
    "BREAKER_REDIS_URL",
    "OTEL_EXPORTER_OTLP_HEADERS",
}


def load_settings(env_file: str | None = ".env") -> Settings:
    """Read `env_file` and the environment, which wins. Raises `SettingsError`: one line that names the variable."""
    concerns: dict[str, SettingsGroup] = {}
    for name, concern in _concerns().items():
        try:
            concerns[name] = concern(_env_file=env_file)
        except ValidationError as error:
            raise SettingsError(_one_line(concern, error)) from None
    settings = Settings.model_validate(concerns)
    check_together(settings)
    return settings


def variable_names() -> list[str]:
    """Every environment variable that the service reads, in the order of the settings classes."""
    return [_variable(concern, field) for concern in _concerns().values() for field in concern.model_fields]


def effective_values(settings: Settings) -> dict[str, Any]:
    """The value of every variable, also of secrets."""
    return {
        _variable(concern, field): getattr(getattr(settings, name), field)
        for name, concern in _concerns().items()
        for field in concern.model_fields
    }


def origins(env_file: str = ".env") -> dict[str, str]:
    """Returns the origin of each given variable: `environment`, or the name of `env_file`. Others have their default.

    Also names variables of `env_file` that are not settings.
    """
    found: dict[str, str] = {}
    for concern in _concerns().values():
        found |= {name.upper(): env_file for name in DotEnvSettingsSource(concern, env_file=env_file).env_vars}
    known = set(variable_names())
    given = {name.upper() for name in EnvSettingsSource(next(iter(_concerns().values()))).env_vars}
    return {**found, **dict.fromkeys(known & given, "environment")}


VARYING: Final[dict[str, tuple[type[SettingsGroup], str]]] = {
    "LLM_MODEL": (OllamaSettings, "llm_model"),
    "SEMANTIC_CACHE_ENABLED": (CacheSettings, "enabled"),
    "SEMANTIC_CACHE_POLICY": (CacheSettings, "policy"),
    "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": (CacheSettings, "similarity_threshold"),
}
"""Settings that can differ from request to request."""
TOP_K: Final = TypeAdapter(Annotated[int, Field(ge=0, le=20)])
PROMPT: Final = TypeAdapter(Annotated[str, Field(min_length=1, max_length=32_768)])
VARIES: Final = ", ".join(sorted([*VARYING, "PROMPT_TEMPLATE", "TOP_K"]))


def validated_variant(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a variant of an experiment, each validated as the service validates its own.

    Also `TOP_K`, the `top_k` of requests without one, and `PROMPT_TEMPLATE`, the text of a prompt template, which the
    caller parses. Raises `SettingsError`: one line that names the setting and says what to do.
    """
    found = {name: _of_variant(name, value) for name, value in given.items()}
    if found.get("SEMANTIC_CACHE_ENABLED") and not settings.cache.enabled:
        raise SettingsError("SEMANTIC_CACHE_ENABLED: the service runs with false, and a variant cannot turn it on")
    return found


def _of_variant(name: str, value: Any) -> Any:
    more: dict[str, TypeAdapter[Any]] = {"TOP_K": TOP_K, "PROMPT_TEMPLATE": PROMPT}
    try:
        if name in VARYING:
            concern, field = VARYING[name]
            return getattr(concern(_env_file=None, **{field: value}), field)
        if name in more:
            return more[name].validate_python(value)
    except ValidationError as error:
        reason = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{name}: {reason}") from None
    if name == "PROMPT_TEMPLATE_PATH":
        raise SettingsError(f"{name}: give the text of the file as PROMPT_TEMPLATE, so that every replica has it")
    if name in variable_names():
        raise SettingsError(f"{name}: cannot vary from request to request; a variant may set {VARIES}")
    raise SettingsError(f"{name}: no such setting; a variant may set {VARIES}")


def _concerns() -> dict[str, type[SettingsGroup]]:
    """The settings classes by their name in `Settings`."""
    annotations = {name: info.annotation for name, info in Settings.model_fields.items()}
    return {
        name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, SettingsGroup)
    }


def _variable(concern: type[SettingsGroup], field: str) -> str:
    return f"{concern.model_config.get('env_prefix', '')}{field}".upper()


def _one_line(concern: type[SettingsGroup], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    variable = _variable(concern, str(first["loc"][0]))
    given = "" if variable in SECRET else f" (given: {first['input']!r})"
    reason = str(first["msg"]).removeprefix("Value error, ")
    line = f"{variable}: {reason}{given}"
    return _USER_OF_URL.sub(r"\1***@", line) if variable.endswith("_URL") else line


_USER_OF_URL: Final = re.compile(r"(//|['\"])[^\s'\"]*@")
"""The user and password of a URL in a message, with what is before them."""
