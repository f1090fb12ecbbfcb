"""Ollama, the embedder, the connection pool, the bulkhead and the circuit breaker."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from api.settings.answers import FilePath, NotNegative, Percent, Positive, Seconds, SettingsGroup, split_list


@dataclass(frozen=True, slots=True)
class BackendPlace:
    """One entry of OLLAMA_BASE_URL: `url` has no trailing slash. The lowest `tier` is used first."""

    url: str
    tier: int = 1
    weight: int = 1

    @property
    def address(self) -> str:
        """The URL without a user and password, for output."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


HIGHEST: Final = 100
"""Highest tier and weight."""
_NUMBER: Final = re.compile(r"(tier|weight)=([1-9]\d?|100)", re.ASCII)


def _place(entry: str) -> BackendPlace:
    """Parses `http://gpu:11434#tier=1&weight=2`. Raises `ValueError`."""
    url, mark, fragment = entry.partition("#")
    if not _is_http(url):
        raise ValueError(f"'{entry}' is not an http:// or https:// URL")
    parts = [_NUMBER.fullmatch(part) for part in fragment.split("&")] if mark else []
    numbers = {part[1]: int(part[2]) for part in parts if part is not None}
    if len(numbers) < len(parts):
        raise ValueError(f"'#{fragment}' must be like #tier=1&weight=2, with numbers from 1 to {HIGHEST}")
    return BackendPlace(url.rstrip("/"), **numbers)


def _check_base_urls(value: str) -> str:
    for entry in split_list(value):
        _place(entry)
    return value


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, and the message would repeat it
        return False


KEEP_ALIVE = r"^-?(\d+|(\d+(\.\d+)?(ms|s|m|h))+)$"
"""Seconds, or a duration as Ollama reads it: `90s`, `1h30m`; below zero: forever."""
LANGUAGES = r"^(?i:all|\s*[a-z]{2,3}\s*(,\s*[a-z]{2,3}\s*)*)$"
"""ISO 639 codes with commas between them, or `all`."""

ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), Field(title="name")]


class OllamaSettings(SettingsGroup):
    """The backends and the language model."""

    ollama_base_url: Annotated[str, AfterValidator(_check_base_urls), Field(title="URLs")] = "http://127.0.0.1:11434"
    """URL of Ollama. Several, comma separated, share the load.

    An entry may end with `#tier=2`, `#weight=3` or `#tier=2&weight=3`: a tier is used while all lower ones are down or
    full, and a weight is a share of the calls within a tier. Both are 1 by default.
    """
    llm_model: ModelName = "llama3.2"
    """Model that answers unless a request names another."""
    ollama_connect_timeout: Seconds = 2.0
    """Time to connect."""
    ollama_first_token_timeout: Seconds = 30.0
    """Time to the first token of a model in memory."""
    ollama_cold_first_token_timeout: Seconds = 300.0
    """Time to the first token of a model that Ollama is loading."""
    ollama_inter_token_timeout: Seconds = 15.0
    """Time between two tokens."""
    ollama_total_timeout: Seconds = 300.0
    """Time for a whole answer, including a retry.

    Reading a stream does not count. A request may shorten it with `X-Request-Timeout`.
    """
    ollama_probe_interval: Annotated[float, Field(gt=0, le=30, title="seconds")] = 5.0
    """Time between two health checks of a backend.

    One worker checks for the whole fleet.
    """
    ollama_warm_up: bool = True
    """Load the models at start and when a backend returns."""
    ollama_keep_alive: Annotated[str, Field(title="duration", pattern=KEEP_ALIVE)] = "5m"
    """How long Ollama keeps an unused model in memory.

    `90s`, `5m`, `1h30m`, or seconds; below zero: forever.
    """
    ollama_max_prompt_tokens: Positive = 131_072
    """Tokens of a prompt, of three bytes each. Longer ones get 422.

    Ollama reads a prompt to its end even if its caller leaves, so on a slow machine a long one blocks all others.
    """
    ollama_prefix_affinity: Annotated[float, Field(ge=0, le=100, title="calls")] = 2.0
    """Calls that a backend may be busier if it knows a prompt.

    A backend keeps the state of the last prompts. A call goes to one that has read the beginning of its prompt, unless
    that is busier by more than this, times the share of the prompt that it knows. 0: only the load counts.
    """
    ollama_prefix_prompts: Annotated[int, Field(ge=1, le=256)] | None = None
    """Prompts whose state a backend keeps. Default: `BULKHEAD_MAX_CONCURRENT`.

    Ollama keeps `OLLAMA_NUM_PARALLEL` per model, a llama.cpp server with `--cache-ram` more.
    """
    ollama_num_ctx: Positive | None = None
    """Context of every generation in tokens. Default: the model's, or the client's."""
    ollama_admin_passthrough: bool = False
    """Lets admins pull, push, create and delete models."""
    ollama_max_num_ctx: Positive = 32_768
    """Largest `num_ctx` and `num_batch` of a client. Each reloads the model."""
    ollama_pin_options: bool = False
    """Refuse options that reload a model, such as `num_gpu`."""
    ollama_generate_context: bool = False
    """Forward every `/api/generate`, for its `context`.

    These requests then find answers to the letter only.
    """

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The backends, in the order given, without a trailing slash."""
        return tuple(place.url for place in self.places)

    @property
    def places(self) -> tuple[BackendPlace, ...]:
        """The backends with their tiers and weights, in the order given."""
        return tuple(_place(entry) for entry in split_list(self.ollama_base_url))


class EmbedderSettings(SettingsGroup):
    """The embedder: turns questions and passages into vectors."""

    embedder: Literal["ollama", "onnx"] = "ollama"
    """Where texts are embedded: on Ollama or in each worker.

    `scripts/run` and the container image set `onnx`, which needs the extra `onnx`.
    """
    embed_model: ModelName = "nomic-embed-text"
    """Embedding model on Ollama. Not used with `EMBEDDER=onnx`."""
    embed_model_path: FilePath | None = None
    """Model for `EMBEDDER=onnx`. Default: the model of the extra `onnx`.

    A folder with `model.onnx` and `tokenizer.json`, or a model file next to `tokenizer.json`. It must have the output
    `last_hidden_state` of 384 dimensions, whose mean is the vector. For other models use `EMBEDDER=ollama`.
    """
    embed_timeout: Seconds = 2.0
    """Time to embed a question, including the wait for a permit.

    Then the question skips the semantic tier.
    """
    embed_languages: Annotated[str, StringConstraints(pattern=LANGUAGES), Field(title="list")] | None = None
    """Languages of the embedder: `all`, or ISO 639 codes like `en,de`.

    Questions in other languages skip the semantic tier. Default: all for known multilingual models, else English.
    """
    embed_max_inputs: Annotated[int, Field(ge=1, le=10_000)] = 1024
    """Texts in one request to an embedding endpoint. More get 400."""

    @property
    def language_codes(self) -> frozenset[str] | None:
        """Those of EMBED_LANGUAGES; empty where it says `all`, None where it says nothing."""
        if self.embed_languages is None:
            return None
        return frozenset(split_list(self.embed_languages.lower())) - {"all"}


class PoolSettings(SettingsGroup):
    """Each worker's connections to Ollama."""

    model_config = SettingsConfigDict(env_prefix="CONNECTION_POOL_")
    min_size: NotNegative = 5
    """Connections opened at start and kept, at most the maximum."""
    max_size: Positive = 15
    """Connections, and so calls in flight, per worker."""
    max_keepalive: NotNegative = 30
    """Unused connections to keep, at most the maximum size."""
    keepalive_expiry: Seconds = 30.0
    """How long an unused connection is kept."""
    timeout: Seconds = 5.0
    """How long a request waits for a connection; then 503."""


class BulkheadSettings(SettingsGroup):
    """Limits on the fleet's concurrent calls to Ollama, and on its queue."""

    model_config = SettingsConfigDict(env_prefix="BULKHEAD_")
    max_concurrent: Positive = 4
    """Generations at once.

    Set it to Ollama's `OLLAMA_NUM_PARALLEL` times the number of loaded models that you use.
    """
    max_queue: Annotated[int, Field(ge=0, le=1000)] = 64
    """Calls that may wait. One more gets 503. 0: none waits."""
    max_wait: Seconds = 30.0
    """How long a call waits; then 503."""
    batch_after: Annotated[float, Field(ge=0, le=3600, title="seconds")] = 10.0
    """A batch call goes first after this wait. 0: never.

    At each backend, one batch call goes first in this time, if no other is running. Users keep three quarters of the
    permits' time.
    """
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the permits that one tenant's calls may hold.

    At least one permit. Below 1, a tenant with long answers leaves some permits to others, and cannot use all alone.
    """
    embed_max_concurrent: Positive = 8
    """Embedding calls at once, with `EMBEDDER=ollama`.

    They have a separate queue. Questions go first, and a quarter of the permits is for questions only. A question waits
    at most `EMBED_TIMEOUT`.
    """


class BreakerSettings(SettingsGroup):
    """Settings of the circuit breaker: when it opens, and how it recovers."""

    model_config = SettingsConfigDict(env_prefix="CIRCUIT_BREAKER_")
    enabled: bool = True
    """`false` admits every call and only counts."""
    failure_threshold: Positive = 5
    """Consecutive failures that open the breaker."""
    timeout: Seconds = 60.0
    """How long the breaker stays open the first time."""
    timeout_max: Seconds = 300.0
    """Maximum time open. It doubles when half-open opens again."""
    half_open_max_calls: Positive = 3
    """Probes at once while half-open, and successes to close it."""
    minimum_calls: Positive = 20
    """Calls in the window before the two rates are judged."""
    failure_rate_threshold: Percent = 50.0
    """Failed calls in the window that open the breaker."""
    slow_call_rate_threshold: Percent = 100.0
    """Slow calls that open it, in the window or of probes."""
    slow_call_duration: Seconds = 30.0
    """Time to the first token from which a call is slow.

    Time to load the model does not count.
    """
    window: Annotated[int, Field(ge=1, le=600, title="seconds")] = 60
    """Length of the window."""
    stable_time: Seconds = 300.0
    """Time closed after which the time open starts over.

    Then the next opening lasts `CIRCUIT_BREAKER_TIMEOUT` again.
    """
