"""Every key in Redis. docs/redis-keys.md says what each holds; nothing else in the code spells a key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one prefix (`rag:` unless REDIS_PREFIX says otherwise)."""

    prefix: str = "rag:"

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

    def cache_prefix(self, embedder: str) -> str:
        """What the keys of all entries embedded by one embedder begin with: what its index covers."""
        return f"{self.prefix}cache:{embedder}-"

    def cache_entry(self, scope: str, digest: str) -> str:
        """One cached answer. `scope` begins with the embedder's fingerprint."""
        return f"{self.prefix}cache:{scope}:{digest}"

    @property
    def cache_entries(self) -> str:
        """What the keys of all entries begin with, whoever embedded them."""
        return f"{self.prefix}cache:"

    @property
    def cache_invalidated(self) -> str:
        """When which answers were last invalidated."""
        return f"{self.prefix}invalidated"

    @property
    def cache_deleted(self) -> str:
        """What operators deleted, for longer."""
        return f"{self.prefix}deleted"

    def cache_index(self, embedder: str, algorithm: str) -> str:
        """The search index over the entries of one embedder, of one kind. The number is that of its fields."""
        return f"{self.cache_indexes}{embedder}-{algorithm}-2"

    @property
    def cache_indexes(self) -> str:
        """What the names of all search indexes begin with."""
        return f"{self.prefix}index:cache:"

    @property
    def cache_index_uses(self) -> str:
        """The search indexes by their last use."""
        return f"{self.prefix}indexes"

    @property
    def janitor(self) -> str:
        """The worker that drops search indexes that nobody uses."""
        return f"{self.prefix}janitor"

    @property
    def cache_books(self) -> list[str]:
        """What is kept of all entries: what each is worth, when it is gone, how often it was used."""
        return [f"{self.prefix}evict:cache", f"{self.prefix}expire:cache", f"{self.prefix}uses:cache"]

    def condensed(self, digest: str) -> str:
        """A follow-up question, rewritten to stand alone."""
        return f"{self.prefix}condensed:{digest}"

    def flight(self, scope: str, digest: str) -> list[str]:
        """The keys of a flight: who leads, its words, and who refreshes. The braces keep them on one shard."""
        base = f"{self.prefix}flight:{{{scope}:{digest}}}"
        return [base, f"{base}:words", f"{base}:refresh"]

    def flight_channel(self, worker: str) -> str:
        """Where a worker hears of its flights."""
        return f"{self.prefix}flight:wake:{worker}"

    def cache_warm_up(self, job: str) -> list[str]:
        """A warm-up of the cache: its progress, the questions left, and all warm-ups that go on."""
        base = f"{self.prefix}warm:{job}"
        return [base, f"{base}:queue", self.cache_warm_ups]

    @property
    def cache_warm_ups(self) -> str:
        """Warm-ups of the cache that go on, by their start."""
        return f"{self.prefix}warm:jobs"

    @property
    def cache_stats(self) -> str:
        """Counters of the cache."""
        return f"{self.prefix}stats:cache"

    def worker(self, worker: str) -> str:
        """One live worker."""
        return f"{self.prefix}worker:{worker}"

    @property
    def workers(self) -> str:
        """The live workers by the end of their lease."""
        return f"{self.prefix}workers"

    def embedder(self, model: str) -> str:
        """What the fleet last knew of an embedding model."""
        return f"{self.prefix}embedder:{model}"

    @property
    def prober(self) -> str:
        """The worker that probes the backends for all."""
        return f"{self.prefix}prober"

    def backend(self, name: str) -> str:
        """What the last probe of a backend found."""
        return f"{self.prefix}backend:{name}"

    def digests(self, backend: str) -> str:
        """Which weights the models of a backend have, or had when it last answered."""
        return f"{self.prefix}digests:{backend}"

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
        return f"{self.prefix}doc:{document}"

    def document_text(self, document: str) -> str:
        """The text of the revision that serves."""
        return f"{self.prefix}doc:{document}:text"

    def document_draft(self, document: str) -> str:
        """What the next revision is made of."""
        return f"{self.prefix}doc:{document}:draft"

    def document_work(self, document: str) -> str:
        """A change of the document that is not completed."""
        return f"{self.prefix}doc:{document}:work"

    def document_chunks(self, document: str) -> str:
        """Which chunks have been written: embedder and revision -> how many."""
        return f"{self.prefix}doc:{document}:chunks"

    def chunk(self, embedder: str, document: str, revision: int, number: int) -> str:
        """One chunk of a document, embedded by one embedder."""
        return f"{self.chunk_prefix(embedder)}{document}:{revision}:{number}"

    def chunk_prefix(self, embedder: str) -> str:
        """What the keys of all chunks embedded by one embedder begin with: what its index covers."""
        return f"{self.prefix}chunk:{embedder}:"

    def chunk_index(self, embedder: str) -> str:
        """The search index over the chunks of one embedder."""
        return f"{self.chunk_indexes}{embedder}"

    def corpus(self, owner: str) -> str:
        """The documents of one tenant: how many, and the epoch."""
        return f"{self.prefix}corpus:{owner}"

    def corpus_documents(self, owner: str) -> str:
        """The documents of one tenant by the time of their making."""
        return f"{self.prefix}corpus:{owner}:documents"

    @property
    def corpus_work(self) -> str:
        """Documents with a change that is not completed, by the time it was asked for."""
        return f"{self.prefix}corpus:work"

    @property
    def corpus_state(self) -> str:
        """The documents of all tenants: the epoch, the last revision, and up to which epoch each embedder is done."""
        return f"{self.prefix}corpus:state"

    @property
    def corpus_embedders(self) -> str:
        """Who embeds documents, or did, by the last use."""
        return f"{self.prefix}corpus:embedders"

    @property
    def chunk_indexes(self) -> str:
        """What the names of all indexes over chunks begin with."""
        return f"{self.prefix}index:chunks:"

    @property
    def corpus_schema(self) -> str:
        """Which schema the keys have. As durable as the documents that it tells of."""
        return f"{self.prefix}corpus:schema"

    def embedding_duty(self, embedder: str) -> str:
        """The worker that embeds documents anew after a change of the embedder."""
        return f"{self.prefix}embedding:{embedder}"

    def upload(self, token: str) -> str:
        """A large value while it is written."""
        return f"{self.prefix}upload:{token}"
