"""Cached answers, and documents that answers are grounded in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from api.settings.concern import Concern, Positive, Seconds


class CacheSettings(Concern):
    """The semantic cache."""

    model_config = SettingsConfigDict(env_prefix="SEMANTIC_CACHE_")
    enabled: bool = True
    similarity_threshold: Annotated[float, Field(gt=0, le=1)] = 0.92
    max_size: Positive = 1000
    tenant_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    ttl: Seconds = 3600.0
    stale_ttl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86400.0
    stale_while_revalidate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    coalesce_timeout: Seconds = 60.0
    condense: bool = False
    warm_concurrency: Annotated[int, Field(ge=1, le=64)] = 2


class PartitionSettings(Concern):
    """Into how many parts the cache is divided, each whole on one shard of Redis."""

    cache_partitions: Annotated[int, Field(ge=1, le=256)] | None = None


class DocumentSettings(Concern):
    """What may go into the knowledge base, and how it is cut into chunks."""

    document_max_bytes: Positive = 20 * 1024 * 1024
    document_max_pages: Positive = 2000
    document_max_characters: Positive = 5_000_000
    document_parse_timeout: Seconds = 30.0
    document_embed_timeout: Seconds = 60.0
    document_embed_patience: Seconds = 3600.0
    documents_max: Positive = 100_000
    ingest_wait: Annotated[float, Field(ge=0, le=300)] = 5.0
    chunk_tokens: Annotated[int, Field(ge=16, le=8192)] = 160
    chunk_overlap: Annotated[int, Field(ge=0, le=4096)] = 24
    unused_embeddings_keep: Seconds = 604800.0


class RetrievalSettings(Concern):
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
