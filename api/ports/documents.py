"""Documents, as everybody sees them.

Passages, and how they are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from api.values import EmbedderIdentity, Vector

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

    `digest`: of all that was given, so that the same is not stored twice. `untitled`: a title that the file has of its
    own takes the place of the one in `facts`.
    """

    id: str
    facts: DocumentFacts
    digest: str
    content: bytes
    media_type: str | None = None
    untitled: bool = False


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """A chunk that could not be embedded, and why. It is found by its words alone."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document as everybody sees it. Times are milliseconds of Redis's clock.

    `chunks` and `revision` are those that serve, 0 before the first does; `done` of `total` chunks of the next are
    embedded while `status` is `processing`. `failed` says that the last attempt to store it failed, for `error`.

    `failed_chunks`: the first of the `not_embedded` chunks that could not be embedded. `delayed_by`: why the work on it
    could not get on the last time.
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
    failed_chunks: tuple[FailedChunk, ...] = ()
    not_embedded: int = 0
    delayed_by: str | None = None


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
    """The documents of the fleet. Every method raises `StoreUnavailable`."""

    async def propose(self, draft: Draft, most: int) -> Proposal: ...

    async def find(self, document: str, tenant: str | None = None) -> Document | None: ...

    async def page(self, tenant: str, listing: Listing) -> Page: ...

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]: ...

    async def delete(self, document: str, tenant: str | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Which documents count: those that have one of `tags`, and that are one of `ids`; where empty, all."""

    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a tenant: how many serve, and `epoch`, which grows with each change of them.

    `changed_ms` is when that was last, by Redis's clock: where all is equal these are the same, also after FLUSHALL.
    """

    documents: int
    epoch: int
    changed_ms: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found, `score` by what found it: a cosine, or BM25.

    `span` is where it is in the document's text, `reach` with the neighbours that it was stored with: bytes from, to.
    """

    document: str
    revision: int
    number: int
    score: float
    text: str
    heading: str
    vector: Vector | None
    span: tuple[int, int]
    reach: tuple[int, int]
    embedder: str


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one question finds, the best first.

    `whole`: nothing was left out, neither by a search that was refused or broken off, nor because the embedder that was
    asked has not embedded all documents. `other` then has the most of them, if any.
    """

    meaning: Sequence[Hit] = ()
    words: Sequence[Hit] = ()
    whole: bool = True
    other: str | None = None


@dataclass(frozen=True, slots=True)
class CurrentDocument:
    """What is known of a document that serves now."""

    facts: DocumentFacts
    revision: int


class PassageIndex(Protocol):
    """Searches passages. Every method raises `StoreUnavailable`."""

    async def ensure(self, embedder: EmbedderIdentity) -> None: ...

    async def is_whole(self, embedder: EmbedderIdentity) -> bool: ...

    async def corpus(self, tenant: str) -> Corpus: ...

    async def search(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
    ) -> Rankings: ...

    async def search_words(
        self, embedder: str, tenant: str, wanted: DocumentFilter, question: str, count: int
    ) -> Sequence[Hit]: ...

    async def current(self, documents: Sequence[str], embedder: str) -> Mapping[str, CurrentDocument]: ...

    async def texts(self, spans: Sequence[tuple[str, int, tuple[int, int]]]) -> Sequence[str | None]: ...
