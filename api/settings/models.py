"""Ollama, embeddings, and what keeps calls to them within bounds."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from api.settings.concern import Concern, NotNegative, Percent, Positive, Seconds, split_list


def _check_base_urls(value: str) -> str:
    for url in split_list(value):
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"'{url}' is not an http:// or https:// URL")
    return value


KEEP_ALIVE = r"^-?(\d+|(\d+(\.\d+)?(ms|s|m|h))+)$"
"""Seconds, or a duration as Ollama reads it: `90s`, `1h30m`; below zero: for ever."""
LANGUAGES = r"^(?i:all|\s*[a-z]{2,3}\s*(,\s*[a-z]{2,3}\s*)*)$"
"""ISO 639 codes with commas between them, or `all`."""

ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class OllamaSettings(Concern):
    """The backends and the language model."""

    ollama_base_url: Annotated[str, AfterValidator(_check_base_urls)] = "http://127.0.0.1:11434"
    llm_model: ModelName = "llama3.2"
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
        return tuple(url.rstrip("/") for url in split_list(self.ollama_base_url))


class EmbedderSettings(Concern):
    """Who turns questions into vectors."""

    embedder: Literal["ollama", "onnx"] = "ollama"
    embed_model: ModelName = "nomic-embed-text"
    embed_model_path: str | None = None
    embed_timeout: Seconds = 2.0
    embed_languages: Annotated[str, StringConstraints(pattern=LANGUAGES)] | None = None
    embed_max_inputs: Annotated[int, Field(ge=1, le=10_000)] = 1024

    @property
    def language_codes(self) -> frozenset[str] | None:
        """Those of EMBED_LANGUAGES; empty where it says `all`, None where it says nothing."""
        if self.embed_languages is None:
            return None
        return frozenset(split_list(self.embed_languages.lower())) - {"all"}


class PoolSettings(Concern):
    """Each worker's connections to Ollama."""

    model_config = SettingsConfigDict(env_prefix="CONNECTION_POOL_")
    min_size: NotNegative = 5
    max_size: Positive = 15
    max_keepalive: NotNegative = 30
    keepalive_expiry: Seconds = 30.0
    timeout: Seconds = 5.0


class BulkheadSettings(Concern):
    """How many calls to Ollama the fleet has under way at once, and how many wait for how long."""

    model_config = SettingsConfigDict(env_prefix="BULKHEAD_")
    max_concurrent: Positive = 4
    max_queue: Annotated[int, Field(ge=0, le=1000)] = 64
    max_wait: Seconds = 30.0
    embed_max_concurrent: Positive = 8


class BreakerSettings(Concern):
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
