"""All keys in Redis; no other module builds key names. docs/redis-keys.md describes each key.

The keys of a cache partition share a hash tag, so that a Redis Cluster keeps them and their search index in one slot.
With one partition and no cluster, names have no tag.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final
from zlib import crc32


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """The keys of one cache partition. `tag` is `{p07}`, or empty."""

    prefix: str
    tag: str = ""
    entries: str = field(init=False)
    """The common prefix of all entries."""
    invalidated: str = field(init=False)
    """The time at which each invalidation tag was last set."""
    quarantines: str = field(init=False)
    """The common prefix of all quarantined entries."""
    eviction_keys: tuple[str, ...] = field(init=False)
    """Each entry's score, expiry, uses and tenant, and how many entries each tenant has."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", self._tagged("cache"))
        object.__setattr__(self, "invalidated", self._one("invalidated"))
        object.__setattr__(self, "quarantines", self._tagged("quarantine"))
        kinds = ("evict", "expire", "uses", "tenant", "tenants")
        object.__setattr__(self, "eviction_keys", tuple([self._one(f"{kind}:cache") for kind in kinds]))

    def _tagged(self, base: str) -> str:
        """The common prefix of a kind of keys: `rag:cache:`, or `rag:cache:{p07}:`."""
        return f"{self.prefix}{base}:{self.tag}:" if self.tag else f"{self.prefix}{base}:"

    def _one(self, base: str) -> str:
        """A key that exists once per partition: `rag:invalidated`, or `rag:invalidated:{p07}`."""
        return f"{self.prefix}{base}:{self.tag}" if self.tag else f"{self.prefix}{base}"

    def embedded_by(self, embedder: str) -> str:
        """The common prefix of the entries of one embedder; its index covers them."""
        return f"{self.entries}{embedder}-"

    def entry(self, scope: str, digest: str) -> str:
        """One cached answer. `scope` begins with the embedder's fingerprint."""
        return f"{self.entries}{scope}:{digest}"

    def holds(self, key: str) -> bool:
        """Returns whether a key is an entry of this partition."""
        return key.startswith(self.entries) and (bool(self.tag) or not key.startswith(f"{self.entries}{{"))

    def feedback(self, scope: str, digest: str) -> list[str]:
        """The keys that a vote on an entry changes: its votes, the invalidation tags, eviction, all quarantines."""
        return [f"{self.votes}{scope}:{digest}", self.invalidated, *self.eviction_keys, self.quarantined]

    @property
    def votes(self) -> str:
        """The common prefix of the votes on answers."""
        return self._tagged("votes")

    @property
    def quarantined(self) -> str:
        """The quarantined entries, by time."""
        return self._one("quarantined")

    def quarantine(self, entry: str) -> str:
        """The key of an entry while it is quarantined."""
        return self.quarantines + entry.removeprefix(self.entries)

    def released(self, key: str) -> str:
        """The key of an entry that may be quarantined. Its texts are bound to this one."""
        return self.entries + key.removeprefix(self.quarantines) if key.startswith(self.quarantines) else key

    def entries_of(self, tenant: str) -> str:
        """The scores of one tenant's entries. Scripts build the same name."""
        return f"{self.eviction_keys[0]}:{tenant}"

    def flight(self, scope: str, digest: str) -> list[str]:
        """The keys of a flight: the flight, its messages, the lead of a refresh. They are on the shard of the entry."""
        base = f"{self._tagged('flight')}{scope}:{digest}" if self.tag else f"{self.prefix}flight:{{{scope}:{digest}}}"
        return [base, f"{base}:words", f"{base}:refresh"]

    def index(self, embedder: str, algorithm: str, vector_type: str = "float32") -> str:
        """The search index of one kind for one embedder. The number is the version of its fields."""
        kind = algorithm if vector_type == "float32" else f"{algorithm}-{vector_type}"
        return f"{self.indexes}{embedder}-{kind}-2"

    @property
    def indexes(self) -> str:
        """The common prefix of all search indexes."""
        return self._tagged("index:cache")

    @property
    def index_uses(self) -> str:
        """The time at which each search index was last used."""
        return self._one("indexes")


ACCESS: Final = "access"
DOCUMENTS: Final = "docs"
FLEET: Final = "fleet"
LABELS: Final = "labels"


@dataclass(frozen=True)
class Keys:
    """All keys under one prefix (`rag:` by default, see REDIS_PREFIX).

    On a Redis Cluster (`cluster`), keys that one script or transaction uses share a hash tag: one per cache partition,
    one for documents, one for labels, one for API keys, one for what workers share.
    """

    prefix: str = "rag:"
    cache_partitions: int = 1
    cluster: bool = False

    def _tagged(self, base: str, tag: str) -> str:
        """The common prefix of a kind of keys: `rag:doc:`, on a cluster `rag:doc:{docs}:`."""
        return f"{self.prefix}{base}:{{{tag}}}:" if self.cluster else f"{self.prefix}{base}:"

    @property
    def probe(self) -> str:
        """A key that never exists. Deleting it shows whether Redis accepts writes."""
        return f"{self.prefix}probe"

    def breaker(self, name: str) -> list[str]:
        """The keys of a breaker: state, window, permits, log. The braces keep them on one shard."""
        base = f"{self.prefix}cb:{{{name}}}"
        return [base, f"{base}:window", f"{base}:permits", f"{base}:log"]

    def bulkhead(self, name: str) -> list[str]:
        """The keys of a bulkhead: permits, queue, waiting, stats. The braces keep them on one shard."""
        base = f"{self.prefix}bulkhead:{{{name}}}"
        return [base, f"{base}:queue", f"{base}:waiting", f"{base}:stats"]

    def bulkhead_channel(self, name: str, worker: str) -> str:
        """The channel that tells a worker what becomes of its queued tickets."""
        return f"{self.prefix}bulkhead:{{{name}}}:wake:{worker}"

    # -- the cache ----------------------------------------------------------------------------------------------------

    @lru_cache(4096)  # noqa: B019 - a worker has one of these, and few scopes
    def partition(self, scope: str) -> CacheKeys:
        """The partition that holds the answers of a scope."""
        return self.partitions[crc32(scope.encode()) % self.cache_partitions]

    @property
    def cache_entries(self) -> str:
        """The common prefix of the entries of all partitions."""
        return f"{self.prefix}cache:"

    @property
    def cache_deleted(self) -> str:
        """The tags that operators have deleted, for all partitions; kept longer than invalidation tags."""
        return f"{self.prefix}deleted"

    @cached_property
    def partitions(self) -> tuple[CacheKeys, ...]:
        """All partitions."""
        if self.cache_partitions == 1 and not self.cluster:
            return (CacheKeys(self.prefix),)
        return tuple(CacheKeys(self.prefix, f"{{p{number:02d}}}") for number in range(self.cache_partitions))

    def cache_entry(self, scope: str, digest: str) -> str:
        """One cached answer. `scope` begins with the embedder's fingerprint."""
        return self.partition(scope).entry(scope, digest)

    @lru_cache(4096)  # noqa: B019 - a worker has one of these, and asks for the keys of a flight several times
    def flight(self, scope: str, digest: str) -> list[str]:
        """The keys of a flight: the flight, its messages, the lead of a refresh. They share a slot."""
        return self.partition(scope).flight(scope, digest)

    @property
    def recent(self) -> str:
        """The latest outcomes of questions: a stream."""
        return f"{self.prefix}recent"

    @property
    def served(self) -> str:
        """The common prefix of the answers that went out, by request ID."""
        return self._tagged("served", FLEET)

    @property
    def served_count(self) -> str:
        """The common prefix of their numbers, by minute."""
        return self._tagged("stats:served", FLEET)

    @property
    def janitor(self) -> str:
        """The lease to drop unused search indexes."""
        return f"{self.prefix}janitor"

    def condensed(self, place: str) -> str:
        """A follow-up question, rewritten as a stand-alone question. `place`: `<owner>:<digest>`."""
        owner, _, digest = place.partition(":")
        return f"{self.prefix}condensed:{{{owner}}}:{digest}" if self.cluster else f"{self.prefix}condensed:{place}"

    @property
    def erasures(self) -> str:
        """The erasures of tenants that are to be repeated, by the time (ms)."""
        return f"{self.prefix}erasures"

    @property
    def erasure_lease(self) -> str:
        """The lease to repeat erasures."""
        return f"{self.prefix}erasures:keeper"

    def flight_channel(self, worker: str) -> str:
        """The channel with messages about a worker's flights."""
        return f"{self.prefix}flight:wake:{worker}"

    def cache_warm_up(self, job: str) -> list[str]:
        """The keys of a warm-up: its progress, its remaining questions, and the list of all running ones."""
        base = f"{self._tagged('warm', FLEET)}{job}"
        return [base, f"{base}:queue", self.cache_warm_ups]

    @property
    def cache_warm_ups(self) -> str:
        """The running warm-ups, by start."""
        return f"{self._tagged('warm', FLEET)}jobs"

    @property
    def quality(self) -> str:
        """The fleet's knowledge about its quality: epoch, and the state as JSON."""
        return f"{self.prefix}quality:{{{LABELS}}}" if self.cluster else f"{self.prefix}quality"

    def quality_of(self, scope: str) -> str:
        """The model of one scope."""
        return f"{self._tagged('quality', LABELS)}{scope}"

    @property
    def quality_lease(self) -> str:
        """The lease to learn from labels and to write the quality."""
        return self.quality_of("keeper")

    @property
    def quality_channel(self) -> str:
        """The channel that tells all workers of a new epoch."""
        return f"{self.prefix}quality:changed"

    @property
    def labels(self) -> str:
        """The labels of all scopes."""
        return f"{self.prefix}labels:{{{LABELS}}}" if self.cluster else f"{self.prefix}labels"

    def labels_of(self, scope: str) -> str:
        """The labels of one scope."""
        return f"{self._tagged('labels', LABELS)}{scope}"

    @property
    def labelled_pairs(self) -> str:
        """The pairs of questions that are kept for training."""
        return f"{self._tagged('labels', LABELS)}pairs"

    @property
    def labelled_scopes(self) -> str:
        """The scopes with labels, by the time of the newest one."""
        return f"{self._tagged('labels', LABELS)}scopes"

    @property
    def retracted_labels(self) -> str:
        """The labels that were deleted because another one replaced them."""
        return f"{self._tagged('labels', LABELS)}retracted"

    @property
    def shadow_calls(self) -> str:
        """The number of shadow calls in the current minute."""
        return f"{self._tagged('labels', LABELS)}shadow"

    @property
    def cache_stats(self) -> str:
        """Counters of the cache."""
        return f"{self.prefix}stats:cache"

    def cache_stats_batch(self, worker: str) -> str:
        """The number of a worker's last batch of counters. The braces keep it on the same shard."""
        return f"{self.prefix}stats:batch:{{{self.cache_stats}}}:{worker}"

    @property
    def _history(self) -> str:
        """The common prefix of the history: in the slot of the counters, because one script adds to both."""
        return self._tagged("history", self.cache_stats)

    def history_hour(self, hour: str) -> str:
        """The figures of an hour, by minute."""
        return f"{self._history}{hour}"

    def history_minute(self, minute: str) -> str:
        """The counts of all workers in a minute."""
        return f"{self._history}live:{minute}"

    @property
    def history_lease(self) -> str:
        """The lease to write the history."""
        return f"{self._history}keeper"

    @property
    def experiments(self) -> str:
        """The running experiment, and the start of each that is kept."""
        return f"{self.prefix}experiments:{{{self.cache_stats}}}" if self.cluster else f"{self.prefix}experiments"

    def experiment(self, name: str) -> list[str]:
        """The keys of an experiment: its definition, and its figures, in the slot of the counters as the history is."""
        base = f"{self._tagged('experiment', self.cache_stats)}{name}"
        return [base, f"{base}:figures"]

    @property
    def experiments_channel(self) -> str:
        """The channel that tells all workers of a new epoch."""
        return f"{self.prefix}experiments:changed"

    @property
    def audit(self) -> str:
        """The actions of admins: a stream."""
        return f"{self.prefix}audit"

    @property
    def access_keys(self) -> str:
        """All API keys, and the epoch that grows when one changes."""
        return f"{self.prefix}keys:{{{ACCESS}}}" if self.cluster else f"{self.prefix}keys"

    def access_key(self, key_id: str) -> str:
        """One API key."""
        return f"{self._tagged('key', ACCESS)}{key_id}"

    def limit(self, owner: str, subject: str) -> str:
        """What a key or a tenant has used of its limits. The braces keep those of a tenant on one shard."""
        return f"{self.prefix}limit:{{{owner}}}:{subject}"

    def limit_streams(self, owner: str, subject: str) -> str:
        """The leases of the open streams of a key or a tenant."""
        return f"{self.limit(owner, subject)}:streams"

    @property
    def access_keys_channel(self) -> str:
        """The channel that tells all workers of a new epoch."""
        return f"{self.prefix}keys:changed"

    def worker(self, worker: str) -> str:
        """One live worker."""
        return f"{self._tagged('worker', FLEET)}{worker}"

    @property
    def workers(self) -> str:
        """The live workers, by the end of their lease."""
        return f"{self.prefix}workers:{{{FLEET}}}" if self.cluster else f"{self.prefix}workers"

    def embedder(self, model: str) -> str:
        """The last known identity of an embedding model."""
        return f"{self.prefix}embedder:{model}"

    @property
    def prober(self) -> str:
        """The lease to probe the backends."""
        return f"{self.prefix}prober"

    def speeds(self, backend: str) -> str:
        """How fast a backend reads prompts, by model."""
        return f"{self._tagged('speeds', FLEET)}{backend}"

    def backend(self, name: str) -> str:
        """The result of the last probe of a backend."""
        return f"{self._tagged('backend', FLEET)}{name}"

    def digests(self, backend: str) -> str:
        """The digests of a backend's models as of its last answer."""
        return f"{self._tagged('digests', FLEET)}{backend}"

    @property
    def prefix_key(self) -> str:
        """The key of the digests of prompts."""
        return f"{self.prefix}prefix:{{{FLEET}}}" if self.cluster else f"{self.prefix}prefix"

    def prefixes(self, backend: str) -> str:
        """The digests of the prompts that a backend has read last."""
        return f"{self._tagged('prefix', FLEET)}{backend}"

    def warm_up(self, backend: str) -> str:
        """The lease to load the models of a backend."""
        return f"{self.prefix}warmup:{backend}"

    @property
    def verifier(self) -> str:
        """The verifier in use, and the one before it."""
        return f"{self.prefix}verifier:{{{DOCUMENTS}}}" if self.cluster else f"{self.prefix}verifier"

    def verifier_model(self, digest: str) -> str:
        """The files of a verifier. It is in the slot of uploads, which are renamed to it."""
        return f"{self._tagged('verifier', DOCUMENTS)}{digest}"

    @property
    def retries(self) -> str:
        """Calls to the backends and retries in the last minute."""
        return f"{self.prefix}stats:retries"

    # -- documents ----------------------------------------------------------------------------------------------------

    def document(self, document: str) -> str:
        """One document."""
        return f"{self._tagged('doc', DOCUMENTS)}{document}"

    def document_text(self, document: str) -> str:
        """The text of the current revision."""
        return f"{self.document(document)}:text"

    def document_draft(self, document: str) -> str:
        """The content of the next revision."""
        return f"{self.document(document)}:draft"

    def document_work(self, document: str) -> str:
        """A change to the document that is not finished."""
        return f"{self.document(document)}:work"

    def document_chunks(self, document: str) -> str:
        """The number of chunks written, by embedder and revision."""
        return f"{self.document(document)}:chunks"

    def chunk(self, embedder: str, document: str, revision: int, number: int) -> str:
        """One chunk of a document, embedded by one embedder."""
        return f"{self.chunk_prefix(embedder)}{document}:{revision}:{number}"

    def chunk_prefix(self, embedder: str) -> str:
        """The common prefix of the chunks of one embedder; its index covers them."""
        return f"{self._tagged('chunk', DOCUMENTS)}{embedder}:"

    def passage_index(self, embedder: str) -> str:
        """The search index over the chunks of one embedder."""
        return f"{self.passage_indexes}{embedder}"

    def chunk_index(self, embedder: str) -> str:
        """The index over the same chunks that workers before schema 1.1 use. It knows no language but English."""
        return f"{self.chunk_indexes}{embedder}"

    @lru_cache(1024)  # noqa: B019 - as above
    def corpus(self, owner: str) -> str:
        """A tenant's documents: counts and epoch."""
        return f"{self._tagged('corpus', DOCUMENTS)}{owner}"

    def corpus_documents(self, owner: str) -> str:
        """A tenant's documents, by creation time."""
        return f"{self.corpus(owner)}:documents"

    @property
    def corpus_work(self) -> str:
        """Documents with an unfinished change, by the time it was asked for."""
        return self.corpus("work")

    @property
    def corpus_state(self) -> str:
        """All tenants' documents: the epoch, the last revision, and the epoch that each embedder has completed."""
        return self.corpus("state")

    @property
    def corpus_embedders(self) -> str:
        """The time at which each embedder was last used for documents."""
        return self.corpus("embedders")

    @property
    def passage_indexes(self) -> str:
        """The common prefix of all indexes over chunks."""
        return self._tagged("index:passages", DOCUMENTS)

    @property
    def chunk_indexes(self) -> str:
        """The common prefix of the indexes of workers before schema 1.1."""
        return self._tagged("index:chunks", DOCUMENTS)

    @property
    def corpus_schema(self) -> str:
        """The schema of the keys. It is as durable as the documents, and in the slot of the list of workers."""
        return f"{self.prefix}corpus:schema:{{{FLEET}}}" if self.cluster else f"{self.prefix}corpus:schema"

    def embedding_lease(self, embedder: str) -> str:
        """The lease to embed all documents with a new embedder."""
        return f"{self._tagged('embedding', DOCUMENTS)}{embedder}"

    def upload(self, token: str) -> str:
        """A large value while it is being written."""
        return f"{self._tagged('upload', DOCUMENTS)}{token}"
