"""The knowledge base: documents, the passages that they are cut into, and who is working on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.model import EmbedderIdentity, Vector

DocumentStatus = Literal["processing", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """What whoever gives a document says of it. `source`: where it is from, such as a URL or a path."""

    tenant: str
    title: str
    tags: tuple[str, ...] = ()
    source: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A document that is to be stored: `content` is its text, or the file that becomes it where `media_type` is set.

    `digest`: of all that was given, so that the same is not stored twice.
    """

    id: str
    facts: DocumentFacts
    digest: str
    content: bytes
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document as everybody sees it. Times are milliseconds of Redis's clock.

    `chunks` and `revision` are those that serve, 0 before the first does; `done` of `total` chunks of the next are
    embedded while `status` is `processing`. `failed` says that the last attempt to store it failed, for `error`.
    """

    id: str
    facts: DocumentFacts
    status: DocumentStatus
    chunks: int
    characters: int
    revision: int
    digest: str
    created_ms: int
    updated_ms: int
    error: str | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document's text: characters `start` to `end`, under the headings `heading` (` > ` between them)."""

    number: int
    text: str
    heading: str
    start: int
    end: int


ProposalVerdict = Literal["accepted", "unchanged", "under_way", "full"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What became of a draft; `revision` is the one that it will have, or has."""

    verdict: ProposalVerdict
    revision: int
    existed: bool = False


WorkPhase = Literal["store", "tell"]
"""What is left to do of a change: all of it, or only to tell the cache of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A change of the knowledge base that this worker has taken on.

    `replaced`: a revision served before. `gone`: the document was deleted. `owes`: the cache was not told of a change
    before this one. `attempts`: how often a worker has begun with it and died before it wrote anything. `holder`: what
    this worker's hold on it is known by, which ends when another takes it on.
    """

    id: str
    revision: int
    phase: WorkPhase
    facts: DocumentFacts
    media_type: str | None = None
    digest: str = ""
    replaced: bool = False
    gone: bool = False
    owes: bool = False
    attempts: int = 1
    holder: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """A chunk with its vector; offsets in bytes of the document's UTF-8 text, `reach` with its neighbours."""

    chunk: Chunk
    vector: Vector
    span: tuple[int, int]
    reach: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """Chunks of a revision that are written: where in the text each begins and ends, by number; of how many in all."""

    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """How often documents have changed, of those that began to be kept at `began`: another time after FLUSHALL."""

    number: int
    began: str


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Which documents count: those that have one of `tags`, and that are one of `ids`; where empty, all."""

    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a tenant: how many serve, and `epoch`, which grows with each change of them."""

    documents: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found, `score` by what found it: a cosine, or BM25."""

    document: str
    revision: int
    number: int
    score: float
    text: str
    heading: str
    vector: Vector | None
    reach: tuple[int, int]
    embedder: str


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one question finds, the best first.

    `behind`: not all documents are embedded by the embedder it was asked of; `other` then has the most of them, if any.
    """

    meaning: Sequence[Hit] = ()
    words: Sequence[Hit] = ()
    behind: bool = False
    other: str | None = None


@dataclass(frozen=True, slots=True)
class Current:
    """What is known of a document that serves now."""

    facts: DocumentFacts
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """Documents, the newest first; `cursor` continues after them, None at the end."""

    documents: Sequence[Document]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Which documents a list wants."""

    tag: str | None = None
    status: DocumentStatus | None = None
    source: str | None = None
    cursor: str | None = None
    limit: int = 50


class Documents(Protocol):
    """All documents of the fleet. Every method raises `StoreUnavailable`."""

    async def propose(self, draft: Draft, most: int) -> Proposal:
        """Notes a draft, to be worked on; the newest draft of a document wins. `most`: documents of a tenant."""

    async def find(self, document: str, tenant: str | None = None) -> Document | None:
        """None where there is none, or where it is another tenant's."""

    async def page(self, tenant: str, listing: Listing) -> Page:
        """A part of a tenant's documents."""

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]:
        """The chunks that serve, in order."""

    async def delete(self, document: str, tenant: str | None = None) -> bool:
        """Takes a document out of service, and leaves the rest to be worked on. False where there is none."""


class DocumentWork(Protocol):
    """What is left to do of changes, for whichever worker takes it. Every method raises `StoreUnavailable`.

    Work is void once a newer change is asked for, and another's once its lease has run out and somebody took it on:
    what is written late is refused.
    """

    async def waiting(self, limit: int) -> Sequence[str]:
        """Documents that need work, the oldest first, whether or not a worker has them."""

    async def exists(self, document: str) -> bool:
        """Whether there is something left to do of it."""

    async def take(self, document: str, seconds: float) -> Work | None:
        """The work, if nobody has it: held for so many seconds. Not even this worker has it twice."""

    async def renew(self, work: Work, seconds: float) -> bool:
        """Holds it for longer. False where it is void by now, or another's."""

    async def release(self, work: Work) -> None:
        """Gives it back, to be taken at once."""

    async def told(self, work: Work) -> None:
        """Notes that the cache has been told of what was owed."""

    async def draft(self, work: Work) -> bytes | None:
        """What was given: text, or a file."""

    async def text(self, document: str) -> bytes | None:
        """The text that serves."""

    async def settle_text(self, work: Work, text: bytes) -> bool:
        """Puts the text in the place of the file that it was read from. False where the work is void, or another's."""

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

    async def commit(self, work: Work, embedder: EmbedderIdentity, total: int, characters: int) -> Work | None:
        """Puts the revision into service, in the place of the one before: what is left to do then.

        None where it is void by now, or another's.
        """

    async def fail(self, work: Work, error: str) -> None:
        """Ends work that can not succeed. What served before goes on serving."""

    async def vectors(self, work: Work, embedder: EmbedderIdentity, offset: int, limit: int) -> Sequence[Vector]:
        """Those of the revision's chunks, in order; fewer than `limit` at the end."""

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


class PassageIndex(Protocol):
    """Finds passages. Every method raises `StoreUnavailable`."""

    async def ensure(self, embedder: EmbedderIdentity) -> None:
        """Makes what chunks of `embedder` are found by, unless it exists."""

    async def is_whole(self, embedder: EmbedderIdentity) -> bool:
        """Whether all chunks are found: not while Redis builds the index anew. Known for a while."""

    async def corpus(self, tenant: str) -> Corpus:
        """How much there is to find."""

    async def search(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
    ) -> Rankings:
        """By meaning only where there is a vector. They may hold chunks that do not serve."""

    async def search_words(
        self, embedder: str, tenant: str, wanted: DocumentFilter, question: str, count: int
    ) -> Sequence[Hit]:
        """The ranking by words alone, of chunks of whichever embedder."""

    async def current(self, documents: Sequence[str], embedder: str) -> Mapping[str, Current]:
        """Those of the documents that serve."""

    async def texts(self, spans: Sequence[tuple[str, int, tuple[int, int]]]) -> Sequence[str | None]:
        """Parts of documents' texts: document, revision, bytes from and to. None where it is another revision now."""


@dataclass(frozen=True, slots=True)
class CachedQuestion:
    """A cached answer that new documents may change, and what it was made of."""

    entry: str
    question: str
    tenant: str
    vector: Vector | None
    top_k: int
    wanted: DocumentFilter = field(default_factory=DocumentFilter)


class OutdatedAnswers(Protocol):
    """The cache, as changes of documents see it. Every method raises `StoreUnavailable`."""

    async def near(
        self, embedder: EmbedderIdentity, tenant: str, vectors: Sequence[Vector], floor: float, limit: int
    ) -> tuple[Sequence[CachedQuestion], bool]:
        """Fresh entries whose question is at least `floor` near one of the vectors; whether these are all."""

    async def incomparable(self, embedder: EmbedderIdentity, tenant: str, limit: int) -> tuple[Sequence[str], bool]:
        """Fresh entries that have no vector, or one of another embedder; whether these are all."""

    async def expire(self, entries: Sequence[str]) -> int:
        """Ends their lifetime now: they are served only where Ollama fails."""

    async def expire_all(self, tenant: str) -> int:
        """Ends the lifetime of all that depend on the tenant's documents."""
