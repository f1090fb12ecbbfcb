"""The documents of the whole fleet in Redis: a hash and a text each, and a list for each tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.documents import Chunk, Document, Draft, Listing, Page, Proposal
from api.redis_store.document_fields import chunk_of, document_of, fact_fields, named, owner_of
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.large_values import uploaded
from api.redis_store.scripts import script

LOOKED_AT: Final = 200
"""Documents read by one command, where a list wants those of a kind."""


class RedisDocuments:
    """See `ports.Documents`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate.of(keys.corpus_state)
        self._keys = keys
        self._propose = script(gate.client, "document_common", "document_propose")
        self._delete = script(gate.client, "document_common", "document_delete")

    async def propose(self, draft: Draft, most: int) -> Proposal:
        """See `ports.Documents`."""
        keys, owner = self._keys, owner_of(draft.facts.tenant)
        content = await uploaded(self._gate, keys, draft.content)
        names = [
            keys.document(draft.id),
            keys.document_work(draft.id),
            keys.document_draft(draft.id),
            keys.corpus_work,
            keys.corpus_state,
            keys.corpus_documents(owner),
            content,
        ]
        facts = [part for pair in fact_fields(draft.facts).items() for part in pair]
        further: list[Any] = []
        if draft.media_type is not None:
            further = ["media_type", draft.media_type, "untitled", int(draft.untitled)]
        arguments = [draft.id, draft.digest, most, len(facts) // 2, *facts, *further]
        verdict, revision, existed = await self._gate.run(
            "document_propose", lambda client: self._propose(names, arguments, client)
        )
        if verdict != b"accepted":
            await self._gate.run("document_propose", lambda client: client.unlink(content))
        if verdict == b"lost":
            raise StoreUnavailable("the upload took too long")
        return Proposal(verdict.decode(), int(revision), bool(existed))

    async def find(self, document: str, tenant: str | None = None) -> Document | None:
        """See `ports.Documents`."""
        found = (await self._read([document]))[0]
        return found if found is not None and tenant in (None, found.facts.tenant) else None

    async def page(self, tenant: str, listing: Listing) -> Page:
        """See `ports.Documents`. The cursor is the time and the id of the last that was given."""
        found: list[Document] = []
        cursor = listing.cursor
        while True:
            ids, is_last = await self._after(tenant, cursor, LOOKED_AT)
            for document, read in zip(ids, await self._read([one for one, _ in ids]), strict=True):
                cursor = f"{document[1]}-{document[0]}"
                if read is not None and _is_wanted(read, listing):
                    found.append(read)
                    if len(found) == listing.limit:
                        return Page(found, cursor)
            if is_last:
                return Page(found)

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]:
        """See `ports.Documents`. By an embedder that has all of them, the one that it was put into service by first."""
        keys = (self._keys.document(document), self._keys.document_chunks(document))
        fields, written = await self._gate.run("document_read", lambda client: _all(client, keys))
        revision = int(fields.get("revision", 0))
        done = [name[9:] for name, at in fields.items() if name.startswith("embedded:") and int(at) == revision]
        totals = {embedder: int(written.get(f"{embedder}:{revision}", 0)) for embedder in done}
        if not totals:
            return ()
        embedder = max(totals, key=lambda one: totals[one] == int(fields["chunks"]))
        numbers = range(offset, min(offset + limit, totals[embedder]))
        names = [self._keys.chunk(embedder, document, revision, number) for number in numbers]
        found = await self._gate.run("document_read", lambda client: _all(client, names))
        return [chunk_of(one) for one in found if one]

    async def delete(self, document: str, tenant: str | None = None) -> bool:
        """See `ports.Documents`."""
        if tenant is None:
            known = await self.find(document)
            if known is None:
                return False
            tenant = known.facts.tenant
        keys, owner = self._keys, owner_of(tenant)
        names = [
            keys.document(document),
            keys.document_text(document),
            keys.document_draft(document),
            keys.document_work(document),
            keys.corpus(owner),
            keys.corpus_state,
            keys.corpus_work,
            keys.corpus_documents(owner),
        ]
        arguments: list[Any] = [document, tenant]
        return bool(await self._gate.run("document_delete", lambda client: self._delete(names, arguments, client)))

    async def _after(self, tenant: str, cursor: str | None, count: int) -> tuple[list[tuple[str, int]], bool]:
        """Ids with their times, the newest first, `count` at most and maybe fewer; whether there are no more."""
        key = self._keys.corpus_documents(owner_of(tenant))
        at, _, last = (cursor or "").partition("-")
        newest: Any = int(at) if at.isdigit() else "+inf"
        skipped = 0
        while True:
            reply: list[Any] = await self._gate.run(
                "document_list",
                lambda client, skip=skipped: client.zrange(  # type: ignore[misc]
                    key, newest, "-inf", desc=True, byscore=True, offset=skip, num=count, withscores=True
                ),
            )
            ids = [(name.decode(), int(score)) for name, score in reply]
            left = [(name, score) for name, score in ids if not last or score < int(at) or name < last]
            if left or len(ids) < count:
                return left, len(ids) < count
            skipped += len(ids)

    async def _read(self, documents: Sequence[str]) -> list[Document | None]:
        names = [key for one in documents for key in (self._keys.document(one), self._keys.document_work(one))]
        found = await self._gate.run("document_read", lambda client: _all(client, names))
        pairs = zip(documents, found[::2], found[1::2], strict=True)
        return [document_of(one, fields, work) if "status" in fields else None for one, fields, work in pairs]


async def _all(client: Redis, names: Sequence[str]) -> list[dict[str, bytes]]:
    if not names:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(name)
        return [named(reply) for reply in await pipe.execute()]


def _is_wanted(document: Document, listing: Listing) -> bool:
    tags = {tag.casefold() for tag in document.facts.tags}
    return (
        (listing.tag is None or listing.tag.casefold() in tags)
        and (listing.status is None or document.status == listing.status)
        and (listing.source is None or document.facts.source == listing.source)
    )
