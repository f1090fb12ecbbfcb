"""The semantic cache, the knowledge base and retrieval.

The base class of all settings, and the kinds of values that several of them have.

How the service listens and logs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, title="seconds")]
Percent = Annotated[float, Field(gt=0, le=100, title="percent")]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1, title="bytes")]
FilePath = Annotated[str, Field(title="path")]


class Concern(BaseSettings):
    """One class of settings. Each field is an environment variable: `env_prefix` and its name, in capitals.

    A field's docstring is its description: a line for the table in docs/configuration.md and .env.example, then, after
    a blank line, details for the page. `title` names the kind of value where the type does not. After a change run
    `python -m scripts.generate_docs`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding="utf-8",
        use_attribute_docstrings=True,
    )


def split_list(value: Any) -> Any:
    """A list that is written with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class CacheSettings(Concern):
    """The semantic cache."""

    model_config = SettingsConfigDict(env_prefix="SEMANTIC_CACHE_")
    enabled: bool = True
    """`false` sends every question to Ollama."""
    similarity_threshold: Annotated[float, Field(gt=0, le=1)] = 0.92
    """Cosine from which two questions count as the same.

    No request can lower it.
    """
    max_size: Positive = 1000
    """Entries in the whole fleet. The least valuable goes first.

    An entry's value depends on its last use, the number of its uses and the tokens that it took. Partitions have equal
    shares.
    """
    tenant_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of a full cache that each tenant keeps. 1: no shares.

    A tenant that holds more than this share and more than every other tenant loses an entry first.
    """
    ttl: Seconds = 3600.0
    """How long an answer is fresh."""
    stale_ttl: Annotated[float, Field(ge=0, allow_inf_nan=False, title="seconds")] = 86400.0
    """How long an expired answer is kept for an outage of Ollama."""
    stale_while_revalidate: Annotated[float, Field(ge=0, allow_inf_nan=False, title="seconds")] = 0.0
    """How long an expired answer is served during a refresh.

    It is served at once while one worker of the fleet refreshes it. `SEMANTIC_CACHE_STALE_TTL` is the upper limit.
    """
    coalesce_timeout: Seconds = 60.0
    """Silence after which a waiting question asks for itself.

    It waits for the answer to the same question, and hears nothing of it for this long.
    """
    condense: bool = False
    """Rewrite a question with `history` to stand alone.

    The cache then finds it by its meaning.
    """
    warm_concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    """Questions of a warm-up at once."""


class PartitionSettings(Concern):
    """The number of cache partitions. Each partition is whole on one shard of Redis."""

    cache_partitions: Annotated[int, Field(ge=1, le=256)] | None = None
    """Parts of the cache. Default: 16 on a Redis Cluster, else 1.

    Each part is whole on one shard. All workers of a fleet must have the same value.
    """


class DocumentSettings(Concern):
    """Limits of the knowledge base, and how documents are cut into chunks."""

    document_max_bytes: Bytes = 20 * 1024 * 1024
    """Largest file.

    `MAX_BODY_BYTES` limits a text that is sent as JSON.
    """
    document_max_pages: Positive = 2000
    """Pages of a PDF."""
    document_max_characters: Positive = 5_000_000
    """Characters of a document's text."""
    document_parse_timeout: Seconds = 30.0
    """Time to read a file.

    A file may wait for its turn just as long. A worker reads two files at a time, and one text of up to 1 MiB.
    """
    document_embed_timeout: Seconds = 60.0
    """Time to embed a batch of chunks, with `EMBEDDER=ollama`.

    The wait for a permit counts.
    """
    document_embed_patience: Seconds = 3600.0
    """How long a document waits for a failing embedder.

    The time counts without progress. After it the document is `failed`, with the reason.
    """
    documents_max: Positive = 100_000
    """Documents of one tenant."""
    ingest_wait: Annotated[float, Field(ge=0, le=300, title="seconds")] = 5.0
    """How long `POST /documents` waits before it answers 202.

    If the document is ready earlier, the answer is 201.
    """
    chunk_tokens: Annotated[int, Field(ge=16, le=8192)] = 160
    """Most tokens of a chunk. With `EMBEDDER=onnx` up to 224.

    With `EMBEDDER=onnx` the embedder reads 256 tokens, title and headings included.
    """
    chunk_overlap: Annotated[int, Field(ge=0, le=4096)] = 24
    """Approximate overlap of neighboring chunks, in tokens.

    It must be less than `CHUNK_TOKENS`.
    """
    unused_embeddings_keep: Seconds = 604800.0
    """How long to keep the chunks of an unused embedder.

    They allow a rollback to that embedder.
    """


class RetrievalSettings(Concern):
    """How passages are found for a question and used in the answer."""

    retrieval_candidates: Annotated[int, Field(ge=1, le=200)] = 40
    """Chunks that each of the two searches finds."""
    retrieval_relevance_floor: Annotated[float, Field(ge=-1, le=1)] = 0.25
    """Least cosine of a passage to the question.

    The default was measured for `EMBEDDER=onnx`. Other embedders need another value.
    """
    retrieval_neighbours: Annotated[int, Field(ge=0, le=5)] = 0
    """Neighboring chunks shown on each side of a passage.

    A change affects documents that are stored later.
    """
    rerank_model_path: FilePath | None = None
    """Cross-encoder that orders passages. Default: none.

    A folder with `model.onnx` and `tokenizer.json`, or a model file next to its `tokenizer.json`. It needs the extra
    `onnx`.
    """
    rerank_candidates: Annotated[int, Field(ge=1, le=200)] = 20
    """Passages to re-rank per question, at least `top_k`."""
    rerank_timeout: Seconds = 1.0
    """Time to re-rank one question's passages.

    After it the passages keep their order.
    """
    retrieval_nothing_relevant: Literal["say_so", "answer"] = "say_so"
    """Reply if no document is relevant.

    `say_so` says that the documents have no answer; `answer` lets the model answer alone. It applies where there are
    documents.
    """
    prompt_template_path: FilePath | None = None
    """TOML file with prompts. Default: the built-in prompts."""
    cache_on_new_documents: Literal["affected", "all", "none"] = "affected"
    """Cached answers that a new document makes stale."""


MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""


class ServerSettings(Concern):
    """How the service listens and logs."""

    host: Annotated[str, Field(title="address")] = "127.0.0.1"
    """Address of the service and its metrics port. `0.0.0.0`: all.

    The container image sets `0.0.0.0`.
    """
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """Port of the service. 0 picks a free one."""
    workers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Worker processes. Default: the CPUs given to the process.

    Affinity and the control group's quota limit the CPUs. `scripts/run` starts 2 workers.
    """
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of the metrics process. 0 starts none."""
    max_body_bytes: Bytes = 1024 * 1024
    """Largest request body. A larger one gets 413."""
    header_timeout: Seconds = 10.0
    """Time for a whole request head. A slower one gets 408.

    It runs from the head's first byte to its last. A new connection that sends nothing for this long is closed.
    """
    body_timeout: Seconds = 30.0
    """Time for a request body to make progress, else 408.

    The body must bring 240 bytes for each of these seconds: 7,200 bytes every 30 s. Only time in which the service
    waits for the client counts.
    """
    keepalive_timeout: Seconds = 75.0
    """Time that a client connection may be idle.

    Set it above the idle timeout of the load balancer.
    """
    max_connections: Positive | None = None
    """Client connections per worker. Default: up to 4,096.

    The default is lower where file descriptors are few. At the limit, a worker closes an idle connection for a new one.
    A value that the descriptors do not allow stops the start.
    """
    stream_heartbeat: Seconds = 15.0
    """Silence after which a streamed answer sends a heartbeat.

    Keep it below the idle timeout of every proxy in between.
    """
    stream_stall_timeout: Seconds = 60.0
    """Time that the reader of a stream may take nothing.

    After that the reader counts as gone and the generation ends.
    """
    graceful_timeout: Seconds = 30.0
    """Time that requests in flight get after SIGTERM."""
    drain_delay: Annotated[float, Field(ge=0, le=300, title="seconds")] = 0.0
    """Time between SIGTERM and the end of listening.

    `/health/ready` answers 503 during this time, so that load balancers turn away.
    """
    max_requests: NotNegative = 0
    """Requests after which a worker is replaced, without a gap. 0: never."""
    max_requests_jitter: NotNegative = 0
    """Up to this many more requests, a random number for each worker."""
    worker_memory_limit: Annotated[str, Field(title="size", pattern=MEMORY)] | None = None
    """Memory above which a worker is replaced. Default: none.

    Bytes, `800Mi`, `1.5G`, or a share of the control group's limit: `40%`. Workers are replaced one at a time.
    """
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level to log.

    The log has one JSON object per line.
    """
    log_questions: bool = False
    """Show the text of questions in the log."""
