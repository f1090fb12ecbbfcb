"""Documents, as everybody sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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
