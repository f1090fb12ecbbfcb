"""Every key in Redis, those of the cache in `cache_keys`. docs/redis-keys.md says what each holds.

Nothing else in the code spells a key.

The keys of one partition of the cache: entries, and all that one script touches with them.

A partition is a hash tag, so that on a Redis Cluster all of it is in one slot, its search index too. Where there is but
one partition and no cluster, the names have no tag.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final
from zlib import crc32


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """`tag` is `{p07}`, or empty."""

    prefix: str
    tag: str = ""
    entries: str = field(init=False)
    """What the keys of all entries begin with, whoever embedded them."""
    invalidated: str = field(init=False)
    """When which answers were last invalidated."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", self._tagged("cache"))
        object.__setattr__(self, "invalidated", self._one("invalidated"))

    def _tagged(self, base: str) -> str:
        """What the names of a kind begin with: `rag:cache:`, or `rag:cache:{p07}:`."""
        return f"{self.prefix}{base}:{self.tag}:" if self.tag else f"{self.prefix}{base}:"

    def _one(self, base: str) -> str:
        """The only key of a kind: `rag:invalidated`, or `rag:invalidated:{p07}`."""
        return f"{self.prefix}{base}:{self.tag}" if self.tag else f"{self.prefix}{base}"

    def embedded_by(self, embedder: str) -> str:
        """What the keys of all entries embedded by one embedder begin with: what its index covers."""
        return f"{self.entries}{embedder}-"

    def entry(self, scope: str, digest: str) -> str:
        """One cached answer. `scope` begins with the embedder's fingerprint."""
        return f"{self.entries}{scope}:{digest}"

    def holds(self, key: str) -> bool:
        """Whether it is the key of an entry of this partition."""
        return key.startswith(self.entries) and (bool(self.tag) or not key.startswith(f"{self.entries}{{"))

    @property
    def eviction_keys(self) -> list[str]:
        """Of all entries: what each is worth, when it is gone, its uses, its tenant, and how many each tenant has."""
        return [self._one(f"{kind}:cache") for kind in ("evict", "expire", "uses", "tenant", "tenants")]

    def entries_of(self, tenant: str) -> str:
        """What each entry of one tenant is worth. Scripts make the same name."""
        return f"{self.eviction_keys[0]}:{tenant}"

    def flight(self, scope: str, digest: str) -> list[str]:
        """The keys of a flight: who leads, its words, and who refreshes; on the shard of the entry."""
        base = f"{self._tagged('flight')}{scope}:{digest}" if self.tag else f"{self.prefix}flight:{{{scope}:{digest}}}"
        return [base, f"{base}:words", f"{base}:refresh"]

    def index(self, embedder: str, algorithm: str) -> str:
        """The search index over the entries of one embedder, of one kind. The number is that of its fields."""
        return f"{self.indexes}{embedder}-{algorithm}-2"

    @property
    def indexes(self) -> str:
        """What the names of all search indexes begin with."""
        return self._tagged("index:cache")

    @property
    def index_uses(self) -> str:
        """The search indexes by their last use."""
        return self._one("indexes")


DOCUMENTS: Final = "docs"
FLEET: Final = "fleet"


@dataclass(frozen=True)
class Keys:
    """Names under one prefix (`rag:` unless REDIS_PREFIX says otherwise).

    On a Redis Cluster (`cluster`) what one script, or one transaction, touches has a hash tag in common: each partition
    of the cache its own, all documents one, and what the workers tell each other one.
    """

    prefix: str = "rag:"
    cache_partitions: int = 1
    cluster: bool = False

    def _tagged(self, base: str, tag: str) -> str:
        """What the names of a kind begin with: `rag:doc:`, on a cluster `rag:doc:{docs}:`."""
        return f"{self.prefix}{base}:{{{tag}}}:" if self.cluster else f"{self.prefix}{base}:"

    @property
    def probe(self) -> str:
        """A key that never exists: to delete it tells whether Redis takes writes."""
        return f"{self.prefix}probe"

    def breaker(self, name: str) -> list[str]:
        """The four keys of a breaker: state, window, permits, log. The braces keep them on one shard."""
        base = f"{self.prefix}cb:{{{name}}}"
        return [base, f"{base}:window", f"{base}:permits", f"{base}:log"]

    def bulkhead(self, name: str) -> list[str]:
        """The four keys of a bulkhead: permits, queue, waiting, stats. The braces keep them on one shard."""
        base = f"{self.prefix}bulkhead:{{{name}}}"
        return [base, f"{base}:queue", f"{base}:waiting", f"{base}:stats"]

    def bulkhead_channel(self, name: str, worker: str) -> str:
        """Where a worker hears what becomes of its tickets in line."""
        return f"{self.prefix}bulkhead:{{{name}}}:wake:{worker}"

    # -- the cache ----------------------------------------------------------------------------------------------------

    def partition(self, scope: str) -> CacheKeys:
        """The partition that the answers of a scope are in."""
        return self.partitions[crc32(scope.encode()) % self.cache_partitions]

    @property
    def cache_deleted(self) -> str:
        """What operators deleted, for longer, in all partitions."""
        return f"{self.prefix}deleted"

    @cached_property
    def partitions(self) -> tuple[CacheKeys, ...]:
        """All of them."""
        if self.cache_partitions == 1 and not self.cluster:
            return (CacheKeys(self.prefix),)
        return tuple(CacheKeys(self.prefix, f"{{p{number:02d}}}") for number in range(self.cache_partitions))

    def cache_entry(self, scope: str, digest: str) -> str:
        """One cached answer. `scope` begins with the embedder's fingerprint."""
        return self.partition(scope).entry(scope, digest)

    def flight(self, scope: str, digest: str) -> list[str]:
        """The keys of a flight: who leads, its words, and who refreshes. They are in one slot."""
        return self.partition(scope).flight(scope, digest)

    @property
    def janitor(self) -> str:
        """The worker that drops search indexes that nobody uses."""
        return f"{self.prefix}janitor"

    def condensed(self, digest: str) -> str:
        """A follow-up question, rewritten to stand alone."""
        return f"{self.prefix}condensed:{digest}"

    def flight_channel(self, worker: str) -> str:
        """Where a worker hears of its flights."""
        return f"{self.prefix}flight:wake:{worker}"

    def cache_warm_up(self, job: str) -> list[str]:
        """A warm-up of the cache: its progress, the questions left, and all warm-ups that go on."""
        base = f"{self._tagged('warm', FLEET)}{job}"
        return [base, f"{base}:queue", self.cache_warm_ups]

    @property
    def cache_warm_ups(self) -> str:
        """Warm-ups of the cache that go on, by their start."""
        return f"{self._tagged('warm', FLEET)}jobs"

    @property
    def cache_stats(self) -> str:
        """Counters of the cache."""
        return f"{self.prefix}stats:cache"

    def cache_stats_batch(self, worker: str) -> str:
        """Which batch of a worker was added to them last. The braces put it where they are."""
        return f"{self.prefix}stats:batch:{{{self.cache_stats}}}:{worker}"

    def worker(self, worker: str) -> str:
        """One live worker."""
        return f"{self._tagged('worker', FLEET)}{worker}"

    @property
    def workers(self) -> str:
        """The live workers by the end of their lease."""
        return f"{self.prefix}workers:{{{FLEET}}}" if self.cluster else f"{self.prefix}workers"

    def embedder(self, model: str) -> str:
        """What the fleet last knew of an embedding model."""
        return f"{self.prefix}embedder:{model}"

    @property
    def prober(self) -> str:
        """The worker that probes the backends for all."""
        return f"{self.prefix}prober"

    def backend(self, name: str) -> str:
        """What the last probe of a backend found."""
        return f"{self._tagged('backend', FLEET)}{name}"

    def digests(self, backend: str) -> str:
        """Which weights the models of a backend have, or had when it last answered."""
        return f"{self._tagged('digests', FLEET)}{backend}"

    def warm_up(self, backend: str) -> str:
        """The worker that loads the models of a backend, or did a moment ago."""
        return f"{self.prefix}warmup:{backend}"

    @property
    def retries(self) -> str:
        """Calls to the backends and retries of them, of the last minute."""
        return f"{self.prefix}stats:retries"

    # -- documents ----------------------------------------------------------------------------------------------------

    def document(self, document: str) -> str:
        """One document: what is known of it."""
        return f"{self._tagged('doc', DOCUMENTS)}{document}"

    def document_text(self, document: str) -> str:
        """The text of the revision that serves."""
        return f"{self.document(document)}:text"

    def document_draft(self, document: str) -> str:
        """What the next revision is made of."""
        return f"{self.document(document)}:draft"

    def document_work(self, document: str) -> str:
        """A change of the document that is not completed."""
        return f"{self.document(document)}:work"

    def document_chunks(self, document: str) -> str:
        """Which chunks have been written: embedder and revision -> how many."""
        return f"{self.document(document)}:chunks"

    def chunk(self, embedder: str, document: str, revision: int, number: int) -> str:
        """One chunk of a document, embedded by one embedder."""
        return f"{self.chunk_prefix(embedder)}{document}:{revision}:{number}"

    def chunk_prefix(self, embedder: str) -> str:
        """What the keys of all chunks embedded by one embedder begin with: what its index covers."""
        return f"{self._tagged('chunk', DOCUMENTS)}{embedder}:"

    def chunk_index(self, embedder: str) -> str:
        """The search index over the chunks of one embedder."""
        return f"{self.chunk_indexes}{embedder}"

    def corpus(self, owner: str) -> str:
        """The documents of one tenant: how many, and the epoch."""
        return f"{self._tagged('corpus', DOCUMENTS)}{owner}"

    def corpus_documents(self, owner: str) -> str:
        """The documents of one tenant by the time of their making."""
        return f"{self.corpus(owner)}:documents"

    @property
    def corpus_work(self) -> str:
        """Documents with a change that is not completed, by the time it was asked for."""
        return self.corpus("work")

    @property
    def corpus_state(self) -> str:
        """The documents of all tenants: the epoch, the last revision, and up to which epoch each embedder is done."""
        return self.corpus("state")

    @property
    def corpus_embedders(self) -> str:
        """Who embeds documents, or did, by the last use."""
        return self.corpus("embedders")

    @property
    def chunk_indexes(self) -> str:
        """What the names of all indexes over chunks begin with."""
        return self._tagged("index:chunks", DOCUMENTS)

    @property
    def corpus_schema(self) -> str:
        """Which schema the keys have. As durable as the documents that it tells of; beside the list of workers."""
        return f"{self.prefix}corpus:schema:{{{FLEET}}}" if self.cluster else f"{self.prefix}corpus:schema"

    def embedding_lease(self, embedder: str) -> str:
        """The worker that embeds documents anew after a change of the embedder."""
        return f"{self._tagged('embedding', DOCUMENTS)}{embedder}"

    def upload(self, token: str) -> str:
        """A large value while it is written."""
        return f"{self._tagged('upload', DOCUMENTS)}{token}"
