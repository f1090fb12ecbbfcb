"""The semantic cache, the knowledge base and retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from api.settings.concern import Bytes, Concern, FilePath, Positive, Seconds


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
