"""Protocols for pending changes of documents, deletions of answers, and embeddings of documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from api.ports.answer_cache import Selection
from api.ports.document_store import Chunk, DocumentFacts, FailedChunk
from api.values import ERASED, EmbedderIdentity, Vector, erased_tag

WorkPhase = Literal["store", "tell"]
"""The remaining steps of a change: all, or only notifying the cache."""


@dataclass(frozen=True, slots=True)
class Work:
    """A change of a document that this worker has taken.

    `replaced`: an earlier revision was in service. `gone`: the document was deleted. `pending_invalidation`: the cache
    was not notified of an earlier change. `attempts`: how often workers began it and crashed before any progress.
    `holder`: identifies this worker's lease until another worker takes over. `untitled`: see `Draft`. `delays`: how
    often in a row it was delayed.
    """

    id: str
    revision: int
    phase: WorkPhase
    facts: DocumentFacts
    media_type: str | None = None
    digest: str = ""
    replaced: bool = False
    gone: bool = False
    pending_invalidation: bool = False
    attempts: int = 1
    holder: str = ""
    untitled: bool = False
    delays: int = 0


Delayed = Literal["delayed", "for too long", "void"]


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """A chunk with its vector. Offsets are bytes of the document's UTF-8 text, `reach` includes its neighbours.

    If it could not be embedded, `vector` is None and `failure` says why.
    """

    chunk: Chunk
    vector: Vector | None
    span: tuple[int, int]
    reach: tuple[int, int]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """The written chunks of a revision: their start and end by number, and the total number of chunks.

    `failures`: why some of them could not be embedded.
    """

    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A count of document changes since `began`, which differs after FLUSHALL."""

    number: int
    began: str


class DocumentWork(Protocol):
    """Pending changes of documents, for any worker to take. Every method raises `StoreUnavailable`.

    Work becomes void when a newer change is requested, and another worker's when its lease ends and that worker takes
    it. Late writes are then refused.
    """

    async def waiting(self, limit: int, *, gone: bool) -> Sequence[str]: ...

    async def exists(self, document: str) -> bool: ...

    async def take(self, document: str, seconds: float) -> Work | None: ...

    async def renew(self, work: Work, seconds: float) -> bool: ...

    async def release(self, work: Work) -> None: ...

    async def delay(self, work: Work, pause: float, longest: float, reason: str) -> Delayed: ...

    async def notified(self, work: Work) -> None: ...

    async def draft(self, work: Work) -> bytes | None: ...

    async def text(self, document: str) -> bytes | None: ...

    async def settle_text(self, work: Work, text: bytes) -> bool: ...

    async def written(self, work: Work, embedder: EmbedderIdentity) -> Written: ...

    async def trim(self, work: Work, embedder: EmbedderIdentity, numbers: Sequence[int]) -> None: ...

    async def write(
        self,
        work: Work,
        embedder: EmbedderIdentity,
        chunks: Sequence[EmbeddedChunk],
        total: int,
        done: int,
        seconds: float,
    ) -> bool: ...

    async def rewrite(
        self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[EmbeddedChunk], total: int
    ) -> bool: ...

    async def commit(
        self, work: Work, embedder: EmbedderIdentity, total: int, characters: int, failed: Sequence[FailedChunk] = ()
    ) -> Work | None: ...

    async def fail(self, work: Work, error: str) -> None: ...

    async def vectors(
        self, work: Work, embedder: EmbedderIdentity, offset: int, limit: int
    ) -> Sequence[Vector | None]: ...

    async def finish(self, work: Work) -> None: ...


class Reembedding(Protocol):
    """Documents that a new embedder has not embedded yet. Every method raises `StoreUnavailable`."""

    async def behind(self, embedder: EmbedderIdentity) -> Epoch | None: ...

    def missing(self, embedder: EmbedderIdentity) -> AsyncIterator[Work]: ...

    async def embedded(self, work: Work, embedder: EmbedderIdentity) -> bool: ...

    async def complete(self, embedder: EmbedderIdentity, epoch: Epoch) -> None: ...


class Deletions(Protocol):
    """Deleted tags, kept as long as a backup could restore them. Every method raises `StoreUnavailable`."""

    async def note(self, tags: Sequence[str]) -> None: ...

    async def noted(self) -> Mapping[str, int]: ...

    async def merge(self, tags: Mapping[str, int]) -> None: ...


def tags_of(selection: Selection) -> list[str]:
    """The tags that record a deletion. If it selects more than one question, they cover more rather than less.

    Similar questions are not recorded: all of the tenant's answers then count as deleted.
    """
    if selection.entry is not None:
        return [f"question:{selection.entry.rpartition(':')[2]}"]
    if selection.digest is not None and selection.near is None:
        return [f"question:{selection.digest}"]
    if selection.sources is not None:
        return [f"source:{document}" for document in sorted(selection.sources)]
    if selection.release is not None:
        return [f"release:{selection.release}"]
    if selection.since_ms is not None:
        return [f"{SINCE}{selection.since_ms}"]
    return ["all" if selection.tenant is None else f"tenant:{selection.tenant}"]


SINCE: Final = "since:"
"""Tag of answers that were stored between this time (ms) and the deletion."""


def ranges_of(tags: Mapping[str, int]) -> list[tuple[int, int]]:
    """The times (ms) between which all answers were deleted, from the tags `since:<ms>`."""
    since = {tag.removeprefix(SINCE): at for tag, at in tags.items() if tag.startswith(SINCE)}
    return [(int(start), at) for start, at in since.items() if start.isdecimal()]


def tags_for(tags: Mapping[str, int], tenants: Collection[str]) -> Mapping[str, int]:
    """The tags without those of other tenants. No tenants: all."""
    own = {tag for tenant in tenants for tag in (f"tenant:{tenant}", erased_tag(tenant))}
    others = {tag for tag in tags if tag.startswith(("tenant:", ERASED)) and tag not in own}
    return {tag: at for tag, at in tags.items() if not tenants or tag not in others}


def tags_about(digest: str, tenant: str, documents: Sequence[str], release: str = "") -> list[str]:
    """The tags under which an answer may have been deleted. Times are apart: see `ranges_of`."""
    sources = (f"source:{document}" for document in documents)
    of_tenant = (f"tenant:{tenant}", erased_tag(tenant))
    return ["all", *of_tenant, f"question:{digest}", *sources, *([f"release:{release}"] if release else [])]


class UnusedEmbeddings(Protocol):
    """Chunks of embedders that no worker uses any more. Every method raises `StoreUnavailable`."""

    async def use(self, embedder: EmbedderIdentity) -> None: ...

    async def unused(self, keep: float) -> Sequence[str]: ...

    async def drop_earlier(self) -> Sequence[str]: ...

    def remove(self, embedder: str, keep: float) -> AsyncIterator[int]: ...
