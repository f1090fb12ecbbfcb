"""The keys of one partition of the cache: entries, and all that one script touches with them.

A partition is a hash tag, so that on a Redis Cluster all of it is in one slot, its search index too. Where there is but
one partition and no cluster, the names have no tag.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """`tag` is `{p07}`, or empty."""

    prefix: str
    tag: str = ""

    def _tagged(self, base: str) -> str:
        """What the names of a kind begin with: `rag:cache:`, or `rag:cache:{p07}:`."""
        return f"{self.prefix}{base}:{self.tag}:" if self.tag else f"{self.prefix}{base}:"

    def _one(self, base: str) -> str:
        """The only key of a kind: `rag:invalidated`, or `rag:invalidated:{p07}`."""
        return f"{self.prefix}{base}:{self.tag}" if self.tag else f"{self.prefix}{base}"

    @property
    def entries(self) -> str:
        """What the keys of all entries begin with, whoever embedded them."""
        return self._tagged("cache")

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
    def invalidated(self) -> str:
        """When which answers were last invalidated."""
        return self._one("invalidated")

    @property
    def books(self) -> list[str]:
        """Of all entries: what each is worth, when it is gone, its uses, its tenant, and how many each tenant has."""
        return [self._one(f"{kind}:cache") for kind in ("evict", "expire", "uses", "tenant", "tenants")]

    def entries_of(self, tenant: str) -> str:
        """What each entry of one tenant is worth. Scripts make the same name."""
        return f"{self.books[0]}:{tenant}"

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
