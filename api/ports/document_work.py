"""Changes of documents that are under way, and who is working on them.

Which answers operators have deleted, for as long as a backup could bring them back.

What embedders have made of the documents, for as long as anybody may want it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.ports.cache import Selection
from api.ports.documents import Chunk, DocumentFacts, FailedChunk
from api.values import EmbedderIdentity, Vector

WorkPhase = Literal["store", "tell"]
"""What is left to do of a change: all of it, or only to tell the cache of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A change of the knowledge base that this worker has taken on.

    `replaced`: a revision served before. `gone`: the document was deleted. `pending_invalidation`: the cache was not
    told of a change
    before this one. `attempts`: how often a worker has begun with it and died before it wrote anything. `holder`: what
    this worker's hold on it is known by, which ends when another takes it on. `untitled`: see `Draft`. `delays`: how
    often in a row it was put off.
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
    """A chunk with its vector; offsets in bytes of the document's UTF-8 text, `reach` with its neighbours.

    Where it could not be embedded, `vector` is None and `failure` says why.
    """

    chunk: Chunk
    vector: Vector | None
    span: tuple[int, int]
    reach: tuple[int, int]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """Chunks of a revision that are written: where in the text each begins and ends, by number; of how many in all.

    `failures`: why some of them could not be embedded.
    """

    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Epoch:
    """How often documents have changed, of those that began to be kept at `began`: another time after FLUSHALL."""

    number: int
    began: str


class DocumentWork(Protocol):
    """What is left to do of changes, for whichever worker takes it. Every method raises `StoreUnavailable`.

    Work is void once a newer change is asked for, and another's once its lease has run out and somebody took it on:
    what is written late is refused.
    """

    async def waiting(self, limit: int, *, gone: bool) -> Sequence[str]:
        """Documents that need work, whether or not a worker has them: the `gone` ones, or the others, oldest first."""

    async def exists(self, document: str) -> bool:
        """Whether there is something left to do of it."""

    async def take(self, document: str, seconds: float) -> Work | None:
        """The work, if nobody has it: held for so many seconds. Not even this worker has it twice."""

    async def renew(self, work: Work, seconds: float) -> bool:
        """Holds it for longer. False where it is void by now, or another's."""

    async def release(self, work: Work) -> None:
        """Gives it back, to be taken at once."""

    async def delay(self, work: Work, pause: float, patience: float, reason: str) -> Delayed:
        """Gives it back, to be taken in `pause` seconds.

        `for too long` where it was put off for `patience` seconds without getting on: then it is still held.
        """

    async def told(self, work: Work) -> None:
        """Notes that the cache has been told of what was owed."""

    async def draft(self, work: Work) -> bytes | None:
        """What was given: text, or a file."""

    async def text(self, document: str) -> bytes | None:
        """The text that serves."""

    async def settle_text(self, work: Work, text: bytes) -> bool:
        """Puts the text, and the title of `work`, in the place of the file that they were read from.

        False where the work is void, or another's.
        """

    async def written(self, work: Work, embedder: EmbedderIdentity) -> Written:
        """What there is of the revision's chunks already."""

    async def trim(self, work: Work, embedder: EmbedderIdentity, numbers: Sequence[int]) -> None:
        """Removes chunks of the revision: those of an earlier cut, where this one has fewer."""

    async def write(
        self,
        work: Work,
        embedder: EmbedderIdentity,
        chunks: Sequence[EmbeddedChunk],
        total: int,
        done: int,
        seconds: float,
    ) -> bool:
        """Writes chunks, which do not serve yet, beside `done` others, and renews the work.

        False where it is void by now, or another's.
        """

    async def rewrite(
        self, work: Work, embedder: EmbedderIdentity, chunks: Sequence[EmbeddedChunk], total: int
    ) -> bool:
        """Writes chunks of a revision that serves, by a further embedder, where embedding anew is this worker's duty.

        False where it is not by now, or the revision does not serve any more.
        """

    async def commit(
        self, work: Work, embedder: EmbedderIdentity, total: int, characters: int, failed: Sequence[FailedChunk] = ()
    ) -> Work | None:
        """Puts the revision into service, in the place of the one before: what is left to do then.

        `failed`: those of the chunks that could not be embedded. None where it is void by now, or another's.
        """

    async def fail(self, work: Work, error: str) -> None:
        """Ends work that can not succeed. What served before goes on serving."""

    async def vectors(self, work: Work, embedder: EmbedderIdentity, offset: int, limit: int) -> Sequence[Vector | None]:
        """Those of the revision's chunks, in order, None for what is not embedded; fewer than `limit` at the end."""

    async def finish(self, work: Work) -> None:
        """Ends work that is done, and removes chunks that do not serve any more."""


class Reembedding(Protocol):
    """Documents that a new embedder has not embedded. Every method raises `StoreUnavailable`."""

    async def behind(self, embedder: EmbedderIdentity) -> Epoch | None:
        """That of all documents, where the embedder has not embedded all of them; None where it has."""

    def missing(self, embedder: EmbedderIdentity) -> AsyncIterator[Work]:
        """The documents that it lacks, as work on the revision that serves."""

    async def embedded(self, work: Work, embedder: EmbedderIdentity) -> bool:
        """Notes that all chunks of the revision are written. False where it does not serve any more."""

    async def complete(self, embedder: EmbedderIdentity, epoch: Epoch) -> None:
        """Notes that it has embedded all documents of an epoch."""


class Deletions(Protocol):
    """Every method raises `StoreUnavailable`."""

    async def note(self, marks: Sequence[str]) -> None:
        """Notes that what these marks mean was deleted now."""

    async def noted(self) -> Mapping[str, int]:
        """All marks, and when (ms of Redis's clock)."""

    async def merge(self, marks: Mapping[str, int]) -> None:
        """Takes over marks of another time or place; of two the later holds."""


def marks_of(selection: Selection) -> list[str]:
    """What a deletion is remembered by; where it is not one question's, by more than was meant rather than less.

    Which questions are near one is not kept: all of the tenant's answers count as deleted then.
    """
    if selection.entry is not None:
        return [f"question:{selection.entry.rpartition(':')[2]}"]
    if selection.digest is not None and selection.near is None:
        return [f"question:{selection.digest}"]
    if selection.source is not None:
        return [f"source:{selection.source}"]
    return ["all" if selection.tenant is None else f"tenant:{selection.tenant}"]


def marks_for(marks: Mapping[str, int], tenants: Collection[str]) -> Mapping[str, int]:
    """Without those by which other tenants' answers were deleted, and their names. No tenants: all."""
    others = {mark for mark in marks if mark.startswith("tenant:") and mark.removeprefix("tenant:") not in tenants}
    return {mark: at for mark, at in marks.items() if not tenants or mark not in others}


def marks_about(digest: str, tenant: str, documents: Sequence[str]) -> list[str]:
    """The marks that an answer would be deleted by."""
    return ["all", f"tenant:{tenant}", f"question:{digest}", *(f"source:{document}" for document in documents)]


class UnusedEmbeddings(Protocol):
    """Chunks of embedders that no worker uses any more. Every method raises `StoreUnavailable`."""

    async def use(self, embedder: EmbedderIdentity) -> None:
        """Notes that this worker uses it now."""

    async def unused(self, keep: float) -> Sequence[str]:
        """Fingerprints of those that nobody has used for `keep` seconds."""

    def remove(self, embedder: str, keep: float) -> AsyncIterator[int]:
        """Removes all that it made, document by document: how many chunks. Ends where it is used again."""
