"""The base class of all settings, and the settings of the cache, the knowledge base, retrieval and the server."""

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


class SettingsGroup(BaseSettings):
    """One class of settings. Each field is an environment variable: `env_prefix` and its name, in capitals.

    A field's docstring is its description: a line for the table in docs/configuration.md and .env.example, then, after
    a blank line, details for the page. `title` names the kind of value where the type does not. After a change run
    `python -m scripts.generate_docs`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_file_encoding="utf-8")


def split_list(value: Any) -> Any:
    """A list that is written with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class CacheSettings(SettingsGroup):
    """The semantic cache."""

    model_config = SettingsConfigDict(env_prefix="SEMANTIC_CACHE_")
    enabled: bool = True
    """`false` sends every question to Ollama."""
    similarity_threshold: Annotated[float, Field(gt=0, le=1)] = 0.92
    """Cosine from which two questions count as the same.

    No request can lower it.
    """
    policy: Literal["observe", "fixed", "guarded", "verified"] = "guarded"
    """Which similar questions are hits.

    `observe`: none, not even equal ones; it only counts. `fixed`: from the threshold up. `guarded`: the same, if no
    guard objects. `verified`: where labels show that wrong answers stay under `SEMANTIC_CACHE_MAX_ERROR_RATE`. Before
    there are labels, it uses the shipped verifier's prior, or without it decides as `guarded`.
    """
    max_error_rate: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of wrong hits above which less is served.

    All workers then tighten. They loosen when labels show that the hits are right. `verified` serves as much as this
    share allows.
    """
    max_size: Positive = 1000
    """Entries in the whole fleet. The least valuable goes first.

    The value grows with the last use, the number of uses and the tokens. Partitions have equal shares.
    """
    tenant_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Guaranteed share of the cache for each tenant.

    A tenant that holds more than this share and more than every other tenant loses an entry first. With 1, eviction
    ignores tenants.
    """
    vector_type: Literal["float32", "float16"] = "float32"
    """Numbers of the vectors of cached answers.

    `float16` takes half the memory for vectors. After a change, workers compare only answers that were stored with the
    new type; equal questions hit as before. See [the vector type](semantic-cache.md#the-vector-type).
    """
    near_bytes: Annotated[int, Field(ge=0, title="bytes")] = 16_777_216
    """Memory of each worker for its copies of exact entries.

    A request that equals an earlier one is then answered without Redis. See
    [the near cache](semantic-cache.md#the-near-cache). Without effect on a cluster and with Sentinels. 0: no copies.
    """
    ttl: Seconds = 3600.0
    """How long an answer is fresh."""
    stale_ttl: Annotated[float, Field(ge=0, allow_inf_nan=False, title="seconds")] = 86400.0
    """How long an expired answer is kept for outages of Ollama."""
    stale_while_revalidate: Annotated[float, Field(ge=0, allow_inf_nan=False, title="seconds")] = 0.0
    """How long an expired answer is served during a refresh.

    One worker of the fleet refreshes it. At most `SEMANTIC_CACHE_STALE_TTL`.
    """
    coalesce_timeout: Seconds = 60.0
    """How long a coalesced question may wait without a token.

    Equal questions share one generation. After this silence a waiting question is answered alone.
    """
    grounded_check: bool = True
    """Search again before a similar question gets a hit.

    It applies to answers from documents: the search must find the cited passages, with scores not much lower, and no
    better one. If it rejects the answer, the generation uses its passages. Off with a re-ranker: re-ranking takes
    longer than a look-up may, and scores without it cannot be compared with those of the cached answer.
    """
    follow_ups: bool = True
    """Find a question with `history` by meaning too.

    Only after the same conversation: every answer is exactly equal, and each earlier question, of up to four, is equal
    or one that the cache answered with that entry. While the grounded check is on, follow-ups answered from
    documents need an equal question.
    """
    condense: bool = False
    """Rewrite a question with `history` to find it by meaning.

    Each new follow-up costs a short generation. Rewritten questions are kept for `SEMANTIC_CACHE_TTL`. If the rewriting
    fails, the question keeps its history. Very small models answer instead of rewriting.
    """
    judge_model: Annotated[str, Field(title="model")] | None = None
    """Model that judges two answers where the rules are unsure.

    It is asked in the background, at most twice for a pair of answers. Without it, such labels have no verdict.
    """
    judge_timeout: Seconds = 60.0
    """Time for one reply of the judge model, including its wait."""
    shadow_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of cached answers to generate again and compare.

    It happens in the background, only while the breaker is closed and no call waits. Of semantic hits the share is
    three times as large, up to 0.25, until the fleet has made a third of `SEMANTIC_CACHE_SHADOW_PER_MINUTE`. It is 20
    times as large, up to 0.25, while the fleet is tightened or its error is in doubt. It is 0.5 after a wrong hit, a
    `bad` vote, or a change of release, policy, threshold, target, embedder or verifier, until labels speak against a
    fault. 0: none.
    """
    shadow_per_minute: NotNegative = 30
    """Such comparisons per minute in the whole fleet."""
    keep_pairs: bool = False
    """Keep the questions of labels, to train a verifier.

    Redis keeps the last 20,000 pairs for 30 days. Without this setting labels have no texts.
    """
    verifier_path: FilePath | None = None
    """Model that scores whether two questions have one answer.

    A folder with `model.onnx` and `tokenizer.json`, or `builtin` for the shipped model. It needs the extra `onnx`. The
    policy `verified` learns from its score. Once `ragherd train-verifier --activate` has stored a better model in
    Redis, all workers use that one.
    """
    verifier_timeout: Seconds = 0.2
    """Time for a score, including its wait.

    Without a score, a cached answer that needs one is not served.
    """
    warm_concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    """Questions of a warm-up at once."""


class PartitionSettings(SettingsGroup):
    """The number of cache partitions. Each partition is whole on one shard of Redis."""

    cache_partitions: Annotated[int, Field(ge=1, le=256)] | None = None
    """Partitions of the cache. Default: 16 on a cluster, else 1.

    Each is whole on one shard. All workers need the same value.
    """


class DocumentSettings(SettingsGroup):
    """Limits of the knowledge base, and how documents are cut into chunks."""

    document_max_bytes: Bytes = 20 * 1024 * 1024
    """Largest file.

    A text sent as JSON is limited by `MAX_BODY_BYTES`.
    """
    document_max_pages: Positive = 2000
    """Pages of a PDF."""
    document_max_characters: Positive = 5_000_000
    """Characters of a document's text."""
    document_parse_timeout: Seconds = 30.0
    """Time to read a file.

    A file may also wait this long for its turn. A worker reads two files at a time, and texts of up to 1 MiB one by
    one.
    """
    ocr_languages: str = ""
    """Languages of scanned pages, such as `eng+deu`, for Tesseract.

    The host needs Tesseract with their data. Empty: no OCR.
    """
    document_embed_timeout: Seconds = 60.0
    """Time to embed a batch of chunks, with `EMBEDDER=ollama`.

    It includes the wait for a permit. Batches start with 4 chunks, grow to 16 below 0.25 s and shrink above 0.5 s.
    """
    document_embed_patience: Seconds = 3600.0
    """How long a document waits for a failing embedder.

    Progress restarts this time. Then the document is `failed`, with the reason.
    """
    documents_max: Positive = 100_000
    """Documents of one tenant."""
    ingest_wait: Annotated[float, Field(ge=0, le=300, title="seconds")] = 5.0
    """How long `POST /documents` waits before it answers 202."""
    chunk_tokens: Annotated[int, Field(ge=16, le=8192)] = 160
    """Maximum tokens of a chunk. With `EMBEDDER=onnx` up to 224."""
    chunk_overlap: Annotated[int, Field(ge=0, le=4096)] = 24
    """Approximate overlap of neighboring chunks, in tokens, below `CHUNK_TOKENS`."""
    unused_embeddings_keep: Seconds = 604800.0
    """How long to keep the chunks of an unused embedder, for a rollback."""


class RetrievalSettings(SettingsGroup):
    """Settings of the search for passages and their use in the answer."""

    retrieval_candidates: Annotated[int, Field(ge=1, le=200)] = 40
    """Chunks that each of the two searches finds."""
    retrieval_relevance_floor: Annotated[float, Field(ge=-1, le=1)] = 0.25
    """Minimum cosine of a passage to the question.

    Measured for `EMBEDDER=onnx`. Other embedders need another value.
    """
    retrieval_neighbours: Annotated[int, Field(ge=0, le=5)] = 0
    """Neighboring chunks shown on each side of a passage.

    It applies to documents stored from then on.
    """
    rerank_model_path: FilePath | None = None
    """Cross-encoder that orders passages. Default: none.

    A folder with `model.onnx` and `tokenizer.json`, or a model file next to `tokenizer.json`. It needs the extra
    `onnx`.
    """
    rerank_candidates: Annotated[int, Field(ge=1, le=200)] = 20
    """Passages to re-rank per question, at least `top_k`."""
    rerank_timeout: Seconds = 1.0
    """Time to re-rank a question's passages, else they keep their order."""
    retrieval_nothing_relevant: Literal["say_so", "answer"] = "say_so"
    """Reply if no document is relevant.

    `say_so`: a fixed sentence. `answer`: the model answers alone.
    """
    prompt_template_path: FilePath | None = None
    """TOML file with prompts. Default: the built-in prompts."""
    cache_on_new_documents: Literal["affected", "all", "none"] = "affected"
    """Cached answers that a new document makes stale."""


MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""


class ServerSettings(SettingsGroup):
    """Settings of the server: addresses, timeouts, logs."""

    host: Annotated[str, Field(title="address")] = "127.0.0.1"
    """Address of the service and its metrics port. `0.0.0.0`: all."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """Port of the service. 0 picks a free one."""
    workers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Worker processes. Default: the CPUs given to the process.

    `scripts/run` starts 2.
    """
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of the metrics process. 0 starts none."""
    max_body_bytes: Bytes = 1024 * 1024
    """Largest request body. A larger one gets 413."""
    max_audio_bytes: Bytes = 25 * 1024 * 1024
    """Largest recording to transcribe. A worker takes four at once."""
    header_timeout: Seconds = 10.0
    """Time to receive a request head. A slower one gets 408.

    A new connection that sends nothing for this long is closed.
    """
    body_timeout: Seconds = 30.0
    """Time for a request body to make progress. Else 408.

    240 bytes for each of these seconds must arrive: 7,200 bytes every 30 s. Only waiting for the client counts.
    """
    keepalive_timeout: Seconds = 75.0
    """How long a client connection may be idle.

    Set it above the load balancer's idle timeout.
    """
    max_connections: Positive | None = None
    """Client connections per worker. Default: up to 4,096.

    The default is lower if file descriptors are few; a value above what they allow stops the start. At the limit, a new
    connection replaces an idle one.
    """
    stream_heartbeat: Seconds = 15.0
    """Silence after which a streamed answer sends a heartbeat.

    Keep it below the idle timeout of every proxy.
    """
    stream_stall_timeout: Seconds = 60.0
    """How long the reader of a stream may stop reading.

    Then the generation ends.
    """
    graceful_timeout: Seconds = 30.0
    """Time that requests in flight get after SIGTERM."""
    drain_delay: Annotated[float, Field(ge=0, le=300, title="seconds")] = 0.0
    """Time between SIGTERM and the end of listening.

    `/health/ready` answers 503 meanwhile, so that load balancers turn away.
    """
    max_requests: NotNegative = 0
    """Requests after which a worker is replaced, without a gap. 0: never."""
    max_requests_jitter: NotNegative = 0
    """Up to this many more requests, a random number for each worker."""
    worker_memory_limit: Annotated[str, Field(title="size", pattern=MEMORY)] | None = None
    """Memory above which a worker is replaced. Default: none.

    Bytes, `800Mi`, `1.5G`, or a share of the control group's limit: `40%`. One worker is replaced at a time.
    """
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level to log. Each line is a JSON object."""
    access_log: bool = True
    """Log one line for each request.

    Its event is `request`. Health checks and scrapes are logged only if they fail. [Logs](observability.md#logs)
    lists the fields.
    """
    access_log_hit_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests answered from the cache to log.

    It does not apply to expired answers, misses and errors.
    """
    feedback_ttl: Annotated[float, Field(ge=0, le=86400, title="seconds")] = 3600.0
    """How long an answer can be judged. 0: never.

    Redis remembers each answer that went out for this time: at most 10,000 a minute, and a million in all.
    """
    history_enabled: bool = True
    """Keep the fleet's figures of each minute in Redis for 48 hours.

    `GET /api/history` shows them.
    """
    log_questions: bool = False
    """Show the text of questions in the log and on the live page.

    Then the log also has the messages of all exceptions and what Ollama says about its errors.
    """
    price_per_million_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Cost of a million tokens, for the savings that the live page shows."""
