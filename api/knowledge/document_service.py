"""Document identity (source, version, content), and the service that stores, lists and deletes documents.

A document is identified by its `source` within its tenant: uploading the same source replaces it. Without a source it
is identified by its title if it has a `version`, by its file name if it has no title, else by its content.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import orjson

from api.cancellation import cancel_and_wait, log_failure
from api.errors import DocumentExists, NotFound, PayloadTooLarge, ServiceUnavailable, StoreUnavailable, TooManyDocuments
from api.knowledge.ingestion import Ingestion, with_what_was_read
from api.knowledge.kinds import TEXT
from api.knowledge.parsing import Parser
from api.ports.document_store import Chunk, Document, DocumentFacts, Documents, Draft, Holdings, Listing, Page, Proposal

OnConflict = Literal["replace", "new", "refuse"]
"""What an upload from the source of an existing document does: replaces it, becomes another one, or is refused."""
_ID: Final = re.compile(r"[0-9a-f]{24}")


def is_document_id(text: str) -> bool:
    """Returns whether the id is valid. Other ids could collide with keys next to a document's in Redis."""
    return _ID.fullmatch(text) is not None


def document_id(facts: DocumentFacts, content: bytes, file_name: str = "", on_conflict: OnConflict = "replace") -> str:
    """24 hex digits."""
    name = facts.title or file_name
    if on_conflict == "new":
        known_by = ["content", name, facts.source, hashlib.sha256(content).hexdigest()]
    elif facts.source is not None:
        known_by = ["source", facts.source]
    elif facts.version is not None and name:
        known_by = ["title", name]
    else:
        known_by = ["content", facts.title, hashlib.sha256(content).hexdigest()]
    return _digest([facts.tenant, *known_by])[:24]


def content_digest(facts: DocumentFacts, content: bytes, media_type: str) -> str:
    """64 hex digits over everything uploaded: an identical upload changes nothing."""
    said = [facts.tenant, facts.title, sorted(facts.tags), facts.source, facts.version, media_type]
    given = [] if facts.language is None else [facts.language]
    return _digest([*said, *given, hashlib.sha256(content).hexdigest()])


def _digest(facts: Sequence[object]) -> str:
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()


INLINE_READ_BYTES: Final = 1024 * 1024
"""Largest file that is read before the response; larger ones are read in the background."""
CONCURRENCY: Final = 3
"""Uploads that one worker ingests at a time, besides its background work."""
OF_A_TENANT: Final = 2
"""How many of them may be of one tenant: one embeds while another writes."""
MAX_TAGGED: Final = 200
"""Documents whose tags are counted."""
SETTLE_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.25
"""Seconds between checks whether another worker has finished a queued document."""

Outcome = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`bytes` per file, `characters` per text, `documents` per tenant. `wait`: the seconds a client may wait."""

    bytes: int
    characters: int
    documents: int
    wait: float


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded document: text or a file. Without a title, the file's own title or name is used.

    Without a source, that is the file's name.
    """

    facts: DocumentFacts
    content: bytes
    media_type: str
    file_name: str = ""
    on_conflict: OnConflict = "replace"


@dataclass(frozen=True, slots=True)
class Added:
    """A document and the result of its upload."""

    document: Document
    outcome: Outcome


class DocumentService:
    """One worker's part."""

    def __init__(self, documents: Documents, ingestion: Ingestion, parser: Parser, limits: Limits) -> None:
        self._documents = documents
        self._ingestion = ingestion
        self._parser = parser
        self.limits = limits
        self._at_work: set[asyncio.Task[bool]] = set()
        self._turns = TenantTurns(CONCURRENCY, OF_A_TENANT)

    async def add(self, given: Upload) -> Added:
        """Stores the document, or begins to.

        Raises `PayloadTooLarge`, `UnreadableDocument`, `TooManyDocuments`, `DocumentExists`, `ServiceUnavailable`.
        """
        if len(given.content) > self.limits.bytes:
            raise PayloadTooLarge(f"The document is larger than {self.limits.bytes} bytes.")
        draft = await self._draft(given)
        before = await self._documents.find(draft.id)
        if before is not None and before.digest == draft.digest and before.status == "ready":
            return Added(before, "unchanged")
        proposal = await self._documents.propose(await self._read(given, draft), self.limits.documents)
        if proposal.verdict == "exists":
            raise DocumentExists(f"Document {draft.id} has this source. Replace it, or choose another source.")
        if proposal.verdict == "full":
            raise TooManyDocuments(f"The tenant has {self.limits.documents} documents, as many as it may.")
        if proposal.verdict != "unchanged":
            await self._carried_out(draft.id, given.facts.tenant)
        stored = await self._documents.find(draft.id)
        if stored is None:
            detail = f"Document {draft.id} was deleted while it was stored, or Redis has lost its data. Store it again."
            raise ServiceUnavailable(detail, retry_after=1)
        return Added(stored, _outcome(proposal))

    async def find(self, document: str, tenant: str | None = None) -> Document:
        """Raises `NotFound`."""
        found = await self._documents.find(document, tenant) if is_document_id(document) else None
        if found is None:
            raise _unknown(document)
        return found

    async def page(self, tenant: str, listing: Listing) -> Page:
        """A page of a tenant's documents."""
        return await self._documents.page(tenant, listing)

    async def holdings(self, tenant: str) -> Holdings:
        """How many documents a tenant has, and their tags."""
        return await self._documents.holdings(tenant, MAX_TAGGED)

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]:
        """The document's chunks in service."""
        return await self._documents.chunks(document, offset, limit)

    async def delete(self, document: str, tenant: str | None = None) -> None:
        """Deletes the document.

        Afterwards no cached answer that cites it is served. Raises `NotFound`, `ServiceUnavailable`.

        A repeated request also waits until the cache is notified.
        """
        if not is_document_id(document):
            raise _unknown(document)
        if not await self._documents.delete(document, tenant) and not await self._is_going(document):
            raise _unknown(document)
        until = time.monotonic() + SETTLE_SECONDS
        while not await self._ingestion.carry_out(document) and await self._ingestion.is_waiting(document):
            if time.monotonic() > until:
                raise ServiceUnavailable(
                    "The document is deleted, but cached answers may still cite it. Try again.", retry_after=1
                )
            await asyncio.sleep(random.uniform(0.02, 0.05))  # noqa: S311 - jitter

    async def _is_going(self, document: str) -> bool:
        return await self._documents.find(document) is None and await self._ingestion.is_waiting(document)

    async def aclose(self) -> None:
        """Leaves unfinished work to other workers."""
        await cancel_and_wait(self._at_work)

    async def _draft(self, given: Upload) -> Draft:
        facts = given.facts if given.facts.title else replace(given.facts, title=given.file_name or "Untitled")
        document, digest = await asyncio.to_thread(_known_by, given)
        untitled = not given.facts.title
        refuse = given.on_conflict == "refuse"
        return Draft(document, facts, digest, given.content, given.media_type, untitled=untitled, refuse=refuse)

    async def _read(self, given: Upload, draft: Draft) -> Draft:
        """Reads small files now, so that an unreadable one is refused before anything is stored."""
        if len(given.content) > INLINE_READ_BYTES and given.media_type != TEXT:
            return draft
        parsed = await self._parser.parse(given.content, given.media_type, draft.facts.title)
        facts = with_what_was_read(draft.facts, parsed, untitled=draft.untitled)
        return replace(draft, facts=facts, content=parsed.marked_text.encode(), media_type=None)

    async def _carried_out(self, document: str, tenant: str) -> None:
        """Ingests in the background, on this or another worker, and waits for a while."""
        task = asyncio.create_task(self._in_turn(document, tenant), name="ingestion")
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        log_failure(task, StoreUnavailable, ServiceUnavailable)  # a failed one is pending work for the next worker
        until = time.monotonic() + self.limits.wait
        while (left := until - time.monotonic()) > 0:
            await asyncio.wait({task}, timeout=min(left, LOOK_SECONDS))
            if not await self._ingestion.is_waiting(document):
                return
            if task.done():
                await asyncio.sleep(random.uniform(0.02, 0.05))  # noqa: S311 - jitter

    async def _in_turn(self, document: str, tenant: str) -> bool:
        """While it is queued here, any other worker may take it."""
        async with self._turns.of(tenant):
            return await self._ingestion.carry_out(document)


class TenantTurns:
    """Lets `limit` tasks run at a time, `most` of them for one tenant. Tenants take turns."""

    def __init__(self, limit: int, most: int) -> None:
        self._limit = limit
        self._most = most
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By tenant, in the order in which tenants take turns."""

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Waits for a turn of this tenant, and has it while inside."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._give()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running[tenant] -= 1
                self._running += Counter()  # forgets tenants that run nothing
            self._give()

    def _give(self) -> None:
        """Gives free turns: to the tenant with the fewest, and among those to the one that was served longest ago."""
        while self._running.total() < self._limit and self._waiting:
            tenant = min(self._waiting, key=self._running.__getitem__)
            if self._running[tenant] >= self._most:
                return
            queue = self._waiting.pop(tenant)
            turn = queue.popleft()
            if queue:
                self._waiting[tenant] = queue  # behind the others
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
                self._running[tenant] += 1


def _unknown(document: str) -> NotFound:
    return NotFound(f"There is no document '{document[:100]}'.")


def _known_by(given: Upload) -> tuple[str, str]:
    """The id and the digest. Hashing many megabytes takes a while, so it runs in a thread."""
    document = document_id(given.facts, given.content, given.file_name, given.on_conflict)
    return document, content_digest(given.facts, given.content, given.media_type)


def _outcome(proposal: Proposal) -> Outcome:
    if proposal.verdict == "unchanged":
        return "unchanged"
    return "updated" if proposal.existed else "created"
