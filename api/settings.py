"""Settings from the environment or `.env`, frozen, one class per concern. docs/configuration.md lists them all.

`load_settings` turns every fault into one `SettingsError` line that names the variable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.errors import SettingsError
from api.redis_tls_files import check_tls_files

CLUSTER = ("redis+cluster", "rediss+cluster")
ON_A_CLUSTER = 16
"""Partitions of the cache on a cluster, unless CACHE_PARTITIONS says otherwise."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(gt=0, le=100)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]

MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""
ONNX_CHUNK_TOKENS = 224
"""Of the 256 that MiniLM reads at once: the rest is for its marks, the title and the headings."""


class _Concern(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_file_encoding="utf-8")


class ServerSettings(_Concern):
    """How the service listens and logs."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    workers: Positive | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    max_body_bytes: Positive = 1024 * 1024
    stream_heartbeat: Seconds = 15.0
    stream_stall_timeout: Seconds = 60.0
    graceful_timeout: Seconds = 30.0
    drain_delay: Annotated[float, Field(ge=0, le=300)] = 0.0
    max_requests: NotNegative = 0
    max_requests_jitter: NotNegative = 0
    worker_memory_limit: Annotated[str, Field(pattern=MEMORY)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_questions: bool = False


def _split_keys(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _check_api_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for number, pair in enumerate(value, start=1):
        tenant, separator, key = pair.partition("=")
        if not (separator and tenant.strip() and key.strip()):
            raise ValueError(f"entry {number} is not of the form tenant=key")
    _check_sendable([pair.partition("=")[2] for pair in value])
    return value


def _check_sendable(keys: Sequence[str]) -> None:
    for number, key in enumerate(keys, start=1):
        if not key.isascii():
            raise ValueError(f"the key of entry {number} has a character that is not ASCII, which no header can hold")


class AccessSettings(_Concern):
    """Who may call. `api_keys` is `tenant=key,...`; `admin_keys` a list."""

    api_keys: Annotated[str, NoDecode] = ""
    admin_keys: Annotated[str, NoDecode] = ""

    def tenants_by_key(self) -> dict[str, str]:
        """The tenant that each API key stands for."""
        pairs = (pair.partition("=") for pair in _check_api_keys(_split_keys(self.api_keys)))
        return {key.strip(): tenant.strip() for tenant, _, key in pairs}

    def admins(self) -> tuple[str, ...]:
        """The keys with the admin's right."""
        keys: tuple[str, ...] = _split_keys(self.admin_keys)
        return keys


def is_cluster(url: str) -> bool:
    """Whether a URL names a Redis Cluster."""
    return urlsplit(url).scheme in CLUSTER


def _check_redis_url(value: str) -> str:
    parts = urlsplit(value)
    if "ssl_" in parts.query:
        raise ValueError("TLS has settings of its own: REDIS_CA_FILE, REDIS_CERT_FILE, REDIS_KEY_FILE")
    if parts.scheme in {"redis+sentinel", "rediss+sentinel"}:
        return _check_sentinel_url(parts)
    if parts.scheme in CLUSTER:
        return _check_cluster_url(parts)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "expected redis:// or rediss:// (also with +sentinel or +cluster before the colon), or unix://"
        )
    database = parts.path.strip("/") if parts.scheme != "unix" else ""
    if database not in {"", "0"}:
        raise ValueError("Redis keeps search indexes in database 0 only: leave the database out of the URL")
    return value


def _check_sentinel_url(parts: SplitResult) -> str:
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    if not parts.path.strip("/") or not all(host and port.isdigit() for host, _, port in hosts):
        raise ValueError("expected redis+sentinel://host:port,host:port/name-of-the-primary")
    return parts.geturl()


def _check_cluster_url(parts: SplitResult) -> str:
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    if parts.path.strip("/") or not all(host and port.isdigit() for host, _, port in hosts):
        raise ValueError("expected redis+cluster://host:port,host:port")
    return parts.geturl()


class RedisSettings(_Concern):
    """The shared memory."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url)] = "redis://127.0.0.1:6379"
    prefix: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.:-]+$")] = "rag:"
    timeout: Seconds = 0.2
    connect_timeout: Seconds = 0.2
    request_budget: Seconds = 0.25
    max_connections: Positive = 64
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def is_cluster(self) -> bool:
        """Whether the URL names a Redis Cluster."""
        return is_cluster(self.url)


class BreakerRedisSettings(_Concern):
    """Where breakers and bulkheads are kept, if not with all the rest."""

    model_config = SettingsConfigDict(env_prefix="BREAKER_REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url)] | None = None


def _check_base_urls(value: str) -> str:
    for url in _split_keys(value):
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"'{url}' is not an http:// or https:// URL")
    return value


KEEP_ALIVE = r"^-?(\d+|(\d+(\.\d+)?(ms|s|m|h))+)$"
"""Seconds, or a duration as Ollama reads it: `90s`, `1h30m`; below zero: for ever."""


class OllamaSettings(_Concern):
    """The backends and the language model."""

    ollama_base_url: Annotated[str, AfterValidator(_check_base_urls)] = "http://127.0.0.1:11434"
    llm_model: Annotated[str, Field(min_length=1)] = "llama3.2"
    ollama_connect_timeout: Seconds = 2.0
    ollama_first_token_timeout: Seconds = 30.0
    ollama_cold_first_token_timeout: Seconds = 300.0
    ollama_inter_token_timeout: Seconds = 15.0
    ollama_total_timeout: Seconds = 300.0
    ollama_probe_interval: Annotated[float, Field(gt=0, le=30)] = 5.0
    ollama_warm_up: bool = True
    ollama_keep_alive: Annotated[str, Field(pattern=KEEP_ALIVE)] = "5m"
    ollama_num_ctx: Positive | None = None

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The backends, in the order given, without a trailing slash."""
        return tuple(url.rstrip("/") for url in _split_keys(self.ollama_base_url))


class EmbedderSettings(_Concern):
    """Who turns questions into vectors."""

    embedder: Literal["ollama", "onnx"] = "ollama"
    embed_model: Annotated[str, Field(min_length=1)] = "nomic-embed-text"
    embed_model_path: str | None = None
    embed_timeout: Seconds = 2.0


class PoolSettings(_Concern):
    """Each worker's connections to Ollama."""

    model_config = SettingsConfigDict(env_prefix="CONNECTION_POOL_")
    min_size: Annotated[int, Field(ge=0)] = 5
    max_size: Positive = 15
    max_keepalive: Annotated[int, Field(ge=0)] = 30
    keepalive_expiry: Seconds = 30.0
    timeout: Seconds = 5.0


class BulkheadSettings(_Concern):
    """How many calls to Ollama the fleet has under way at once, and how many wait for how long."""

    model_config = SettingsConfigDict(env_prefix="BULKHEAD_")
    max_concurrent: Positive = 4
    max_queue: Annotated[int, Field(ge=0, le=1000)] = 64
    max_wait: Seconds = 30.0
    embed_max_concurrent: Positive = 8


class BreakerSettings(_Concern):
    """When the circuit breaker opens, and how it recovers."""

    model_config = SettingsConfigDict(env_prefix="CIRCUIT_BREAKER_")
    enabled: bool = True
    failure_threshold: Positive = 5
    timeout: Seconds = 60.0
    timeout_max: Seconds = 300.0
    half_open_max_calls: Positive = 3
    minimum_calls: Positive = 20
    failure_rate_threshold: Percent = 50.0
    slow_call_rate_threshold: Percent = 100.0
    slow_call_duration: Seconds = 30.0
    window: Annotated[int, Field(ge=1, le=600)] = 60
    stable_time: Seconds = 300.0


class CacheSettings(_Concern):
    """The semantic cache."""

    model_config = SettingsConfigDict(env_prefix="SEMANTIC_CACHE_")
    enabled: bool = True
    similarity_threshold: Annotated[float, Field(gt=0, le=1)] = 0.92
    max_size: Positive = 1000
    ttl: Seconds = 3600.0
    stale_ttl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86400.0
    stale_while_revalidate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    coalesce_timeout: Seconds = 60.0
    condense: bool = False
    warm_concurrency: Annotated[int, Field(ge=1, le=64)] = 2


class PartitionSettings(_Concern):
    """Into how many parts the cache is divided, each whole on one shard of Redis."""

    cache_partitions: Annotated[int, Field(ge=1, le=256)] | None = None


class DocumentSettings(_Concern):
    """What may go into the knowledge base, and how it is cut into chunks."""

    document_max_bytes: Positive = 20 * 1024 * 1024
    document_max_pages: Positive = 2000
    document_max_characters: Positive = 5_000_000
    document_parse_timeout: Seconds = 30.0
    documents_max: Positive = 100_000
    ingest_wait: Annotated[float, Field(ge=0, le=300)] = 5.0
    chunk_tokens: Annotated[int, Field(ge=16, le=8192)] = 160
    chunk_overlap: Annotated[int, Field(ge=0, le=4096)] = 24
    unused_embeddings_keep: Seconds = 604800.0


class RetrievalSettings(_Concern):
    """How passages are found for a question, and what an answer makes of them."""

    retrieval_candidates: Annotated[int, Field(ge=1, le=200)] = 40
    retrieval_relevance_floor: Annotated[float, Field(ge=-1, le=1)] = 0.25
    retrieval_neighbours: Annotated[int, Field(ge=0, le=5)] = 0
    rerank_model_path: str | None = None
    rerank_candidates: Annotated[int, Field(ge=1, le=200)] = 20
    rerank_timeout: Seconds = 1.0
    retrieval_nothing_relevant: Literal["say_so", "answer"] = "say_so"
    prompt_template_path: str | None = None
    cache_on_new_documents: Literal["affected", "all", "none"] = "affected"


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


def load_settings(env_file: str | None = ".env") -> Settings:
    """Reads the environment over `env_file`. Raises `SettingsError`: one line that names the variable."""
    concerns: dict[str, _Concern] = {}
    for name, concern in _concerns().items():
        try:
            concerns[name] = concern(_env_file=env_file)
        except ValidationError as error:
            raise SettingsError(_one_line(concern, error)) from None
    settings = Settings.model_validate(concerns)
    _check_together(settings)
    return settings


def variable_names() -> list[str]:
    """Every environment variable that the service reads, in the order of the settings classes."""
    return [_variable(concern, field) for concern in _concerns().values() for field in concern.model_fields]


def _concerns() -> dict[str, type[_Concern]]:
    """The settings classes by their name in `Settings`."""
    annotations = {name: info.annotation for name, info in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, _Concern)}


def _variable(concern: type[_Concern], field: str) -> str:
    return f"{concern.model_config.get('env_prefix', '')}{field}".upper()


def _one_line(concern: type[_Concern], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    variable = _variable(concern, str(first["loc"][0]))
    secret = variable in {"API_KEYS", "ADMIN_KEYS", "REDIS_URL", "BREAKER_REDIS_URL"}
    given = "" if secret else f" (given: {first['input']!r})"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{variable}: {reason}{given}"


def _check_redis_tls(settings: Settings) -> None:
    redis = settings.redis
    files = {"REDIS_CA_FILE": redis.ca_file, "REDIS_CERT_FILE": redis.cert_file, "REDIS_KEY_FILE": redis.key_file}
    given = [variable for variable, path in files.items() if path]
    urls = [redis.url, settings.breaker_redis.url or ""]
    if given and not any(url.startswith("rediss") for url in urls):
        raise SettingsError(f"{given[0]}: needs TLS, and REDIS_URL does not begin with rediss:// or rediss+sentinel://")
    check_tls_files(*files.values())


def _check_together(settings: Settings) -> None:
    _check_redis_tls(settings)
    try:
        tenants = settings.access.tenants_by_key()
    except ValueError as error:
        raise SettingsError(f"API_KEYS: {error}") from None
    if len(tenants) != len(_split_keys(settings.access.api_keys)):
        raise SettingsError("API_KEYS: the same key is given to two tenants")
    try:
        _check_sendable(settings.access.admins())
    except ValueError as error:
        raise SettingsError(f"ADMIN_KEYS: {error}") from None
    if set(tenants) & set(settings.access.admins()):
        raise SettingsError("ADMIN_KEYS: a key is also in API_KEYS")
    if settings.pool.min_size > settings.pool.max_size:
        raise SettingsError(
            f"CONNECTION_POOL_MIN_SIZE: {settings.pool.min_size} is more than CONNECTION_POOL_MAX_SIZE "
            f"({settings.pool.max_size})"
        )
    if not settings.ollama.base_urls:
        raise SettingsError("OLLAMA_BASE_URL: no URL given")
    if len(set(settings.ollama.base_urls)) < len(settings.ollama.base_urls):
        raise SettingsError("OLLAMA_BASE_URL: the same URL is given twice")
    if settings.documents.chunk_overlap >= settings.documents.chunk_tokens:
        raise SettingsError("CHUNK_OVERLAP: must be less than CHUNK_TOKENS")
    if settings.embedder.embedder == "onnx" and settings.documents.chunk_tokens > ONNX_CHUNK_TOKENS:
        raise SettingsError(
            f"CHUNK_TOKENS: at most {ONNX_CHUNK_TOKENS} with EMBEDDER=onnx, which reads no more at once"
        )
    paths = {
        "EMBED_MODEL_PATH": settings.embedder.embed_model_path,
        "RERANK_MODEL_PATH": settings.retrieval.rerank_model_path,
    }
    for variable, path in paths.items():
        if path:
            _check_model(variable, Path(path))


def _check_model(variable: str, path: Path) -> None:
    """Whether the files are there; what is in them is seen when they are loaded."""
    if not path.exists():
        raise SettingsError(f"{variable}: no such file or directory")
    folder, weights = (path, "model.onnx") if path.is_dir() else (path.parent, path.name)
    for name in (weights, "tokenizer.json"):
        if not (folder / name).is_file():
            raise SettingsError(f"{variable}: there is no {name} in {folder}")
