"""Passages, and how they are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from api.model import EmbedderIdentity, Vector
from api.ports.documents import DocumentFacts


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
class Current:
    """What is known of a document that serves now."""

    facts: DocumentFacts
    revision: int


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
