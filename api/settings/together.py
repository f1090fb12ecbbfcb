"""What single values can not tell: whether they go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from api.errors import SettingsError
from api.redis_tls_files import check_tls_files
from api.settings.access import anonymous_refusal
from api.settings.all_settings import Settings

ONNX_CHUNK_TOKENS = 224
"""Of the 256 that MiniLM reads at once: the rest is for its marks, the title and the headings."""


def _check_ports(settings: Settings) -> None:
    server = settings.server
    if server.port and server.port == server.metrics_port:
        raise SettingsError(f"METRICS_PORT: {server.port} is also PORT; give it another one")


def _check_redis_tls(settings: Settings) -> None:
    redis = settings.redis
    files = {"REDIS_CA_FILE": redis.ca_file, "REDIS_CERT_FILE": redis.cert_file, "REDIS_KEY_FILE": redis.key_file}
    given = [variable for variable, path in files.items() if path]
    urls = [redis.url, settings.breaker_redis.url or ""]
    if given and not any(url.startswith("rediss") for url in urls):
        raise SettingsError(f"{given[0]}: needs TLS, and REDIS_URL does not begin with rediss")
    check_tls_files(*files.values())


def _check_sentinels(settings: Settings) -> None:
    if settings.redis.sentinel_username and not settings.redis.sentinel_password:
        raise SettingsError("REDIS_SENTINEL_USERNAME: needs REDIS_SENTINEL_PASSWORD")


def check_together(settings: Settings) -> None:
    """Raises `SettingsError` where values that are right by themselves do not go together."""
    _check_ports(settings)
    _check_redis_tls(settings)
    _check_sentinels(settings)
    _check_access(settings)
    _check_backends(settings)
    _check_documents(settings)


def _check_access(settings: Settings) -> None:
    access = settings.access
    tenants = _keys("API_KEYS", access.tenants_by_key)
    admins = _keys("ADMIN_KEYS", access.admins)
    if set(tenants) & set(admins):
        raise SettingsError("ADMIN_KEYS: a key is also in API_KEYS")
    if refusal := anonymous_refusal(access, settings.server.host):
        raise SettingsError(refusal)


def _keys(variable: str, read: Callable[[], Iterable[str]]) -> Iterable[str]:
    try:
        return read()
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
        raise SettingsError("OLLAMA_BASE_URL: the same URL is given twice")


def _check_documents(settings: Settings) -> None:
    documents, embedder = settings.documents, settings.embedder
    if documents.chunk_overlap >= documents.chunk_tokens:
        raise SettingsError("CHUNK_OVERLAP: must be less than CHUNK_TOKENS")
    if embedder.embedder == "onnx" and documents.chunk_tokens > ONNX_CHUNK_TOKENS:
        raise SettingsError(
            f"CHUNK_TOKENS: at most {ONNX_CHUNK_TOKENS} with EMBEDDER=onnx, which reads no more at once"
        )
    paths = {
        "EMBED_MODEL_PATH": embedder.embed_model_path,
        "RERANK_MODEL_PATH": settings.retrieval.rerank_model_path,
    }
    for variable, path in paths.items():
        if path:
            _check_model(variable, Path(path))
    template = settings.retrieval.prompt_template_path
    if template and not Path(template).is_file():
        raise SettingsError("PROMPT_TEMPLATE_PATH: no such file")


def _check_model(variable: str, path: Path) -> None:
    """Whether the files are there; what is in them is seen when they are loaded."""
    if not path.exists():
        raise SettingsError(f"{variable}: no such file or directory")
    folder, weights = (path, "model.onnx") if path.is_dir() else (path.parent, path.name)
    for name in (weights, "tokenizer.json"):
        if not (folder / name).is_file():
            raise SettingsError(f"{variable}: there is no {name} in {folder}")
