"""Types and protocols for documents and passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.values import EmbedderIdentity, Vector

DocumentStatus = Literal["processing", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """The uploader's description of a document. `source`: where it comes from, such as a URL or a path.

    `language`: in BCP 47, such as `de`; None if it is unknown. `warnings`: what was left out when the file was read.
    Not the uploader's, but stored with the rest.
    """

    tenant: str
    title: str
    tags: tuple[str, ...] = ()
    source: str | None = None
    version: str | None = None
    warnings: tuple[str, ...] = ()
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A document to ingest. `content` is its text, or a file if `media_type` is set.

    `digest`: of the whole upload, so that an identical one changes nothing. `untitled`: a title found in the file
    replaces the one in `facts`. `refuse`: an existing document with other content is not replaced.
    """

    id: str
    facts: DocumentFacts
    digest: str
    content: bytes
    media_type: str | None = None
    untitled: bool = False
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """A chunk that could not be embedded, and why. Search finds it by its words only."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document as users see it. Times are milliseconds of Redis's clock.

    `chunks` and `revision` are those in service, 0 before the first. While `status` is `processing`, `done` of `total`
    chunks of the next revision are embedded. `failed`: the last attempt to ingest it failed with `error`.

    `failed_chunks`: the first of the `not_embedded` chunks that could not be embedded. `delayed_by`: why it was last
    delayed.
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
    """A part of a document's text, characters `start` to `end`, under the headings `heading` (joined by ` > `).

    `page`: the page on which it begins, from 1, if the file has pages.
    """

    number: int
    text: str
    heading: str
    start: int
    end: int
    page: int | None = None


ProposalVerdict = Literal["accepted", "unchanged", "under_way", "full", "exists"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The result of proposing a draft. `revision`: the one it will have, or has."""

    verdict: ProposalVerdict
    revision: int
    existed: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Documents, newest first. `cursor` continues after them; None at the end."""

    documents: Sequence[Document]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A filter for listing documents."""

    tag: str | None = None
    status: DocumentStatus | None = None
    source: str | None = None
    cursor: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a tenant has: the number of documents in service, and their tags with the number of documents each.

    The tags are those of the newest `read` documents, the most frequent first.
    """

    documents: int = 0
    read: int = 0
    tags: tuple[tuple[str, int], ...] = ()


class Documents(Protocol):
    """The documents of the fleet. Every method raises `StoreUnavailable`."""

    async def propose(self, draft: Draft, most: int) -> Proposal: ...

    async def find(self, document: str, tenant: str | None = None) -> Document | None: ...

    async def page(self, tenant: str, listing: Listing) -> Page: ...

    async def holdings(self, tenant: str, most: int) -> Holdings: ...

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]: ...

    async def delete(self, document: str, tenant: str | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Selects documents with one of `tags` and one of `ids`; empty means all."""

    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The version of a tenant's documents: how many are in service, and `epoch`, which grows with each change.

    `changed_ms`: the time of the last change by Redis's clock. If all three are equal the documents are the same, even
    after FLUSHALL. `languages`: those of the passages that have a stemmer, without English.
    """

    documents: int
    epoch: int
    changed_ms: int
    languages: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found. `score`: the search's own, a cosine or BM25.

    `span`: its bytes in the document's text; `reach`: those including the neighbours stored with it. `characters`: its
    span in characters, and `page`: see `Chunk`; None if they are not stored.
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
    characters: tuple[int, int] | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Rankings:
    """The results of a question, best first.

    `complete`: false if a search was refused or cut off, or if the requested embedder has not embedded all documents.
    `other` is then the embedder that has most of them, if any.

    `rare`: chunks with each of the requested terms that few chunks have. `frequent`: terms that more have. `absent`:
    terms that none has.
    """

    meaning: Sequence[Hit] = ()
    words: Sequence[Hit] = ()
    complete: bool = True
    other: str | None = None
    rare: Sequence[Hit] = ()
    frequent: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CurrentDocument:
    """A document in service."""

    facts: DocumentFacts
    revision: int


class PassageIndex(Protocol):
    """Searches passages. Every method raises `StoreUnavailable`."""

    async def ensure(self, embedder: EmbedderIdentity) -> None: ...

    async def is_complete(self, embedder: EmbedderIdentity) -> bool: ...

    async def corpus(self, tenant: str) -> Corpus: ...

    async def search(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
        terms: Sequence[str] = (),
        languages: Sequence[str] = (),
    ) -> Rankings: ...

    async def search_words(
        self,
        embedder: str,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        count: int,
        misspelled: Sequence[str] = (),
        phrases: Sequence[str] = (),
        languages: Sequence[str] = (),
    ) -> Sequence[Hit]: ...

    async def current(self, documents: Sequence[str], embedder: str) -> Mapping[str, CurrentDocument]: ...

    async def texts(self, spans: Sequence[tuple[str, int, tuple[int, int]]]) -> Sequence[str | None]: ...
