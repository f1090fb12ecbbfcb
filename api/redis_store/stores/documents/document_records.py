"""Documents in Redis: a hash and a text each, a list for each tenant, and a digest over all of a tenant's documents.

The first functions convert documents, work and chunks from and to hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis

from api.errors import StoreUnavailable, UnreadableDocument
from api.ports.document_store import (
    Chunk,
    Corpus,
    Document,
    DocumentFacts,
    DocumentStatus,
    Draft,
    FailedChunk,
    Holdings,
    Listing,
    Page,
    Proposal,
)
from api.ports.document_work import EmbeddedChunk, Work, WorkPhase
from api.redis_store.encryption import CONTENT, NO_CIPHER, TextCipher
from api.redis_store.health_gated import HealthGated, HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import downloaded, script, uploaded
from api.values import Vector
from api.values import owner_of as owner_of

Fields = Mapping[str, bytes]
SEALED: Final = "sealed"
"""The field with a chunk's encrypted texts."""


def tag_key(tag: str) -> str:
    """A tag in the index: 16 hex digits, regardless of case."""
    return hashlib.sha256(tag.strip().casefold().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def named(reply: Any) -> dict[str, bytes]:
    """Parses a reply of HGETALL, a map or a flat list."""
    pairs = reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def fact_fields(facts: DocumentFacts) -> dict[str, str | bytes]:
    """The fields for the facts of a document. Facts that are not given are left out."""
    given = {"source": facts.source, "version": facts.version, "language": facts.language}
    fixed: dict[str, str | bytes] = {"tenant": facts.tenant, "title": facts.title, "tags": orjson.dumps(facts.tags)}
    if facts.warnings:
        fixed["warnings"] = orjson.dumps(facts.warnings)
    return {**fixed, **{name: value for name, value in given.items() if value is not None}}


def facts_of(fields: Fields) -> DocumentFacts:
    """Parses these fields. A release that does not know `warnings` and `language` leaves those of another revision."""
    is_current = fields.get("read_revision", b"") in (b"", fields.get("revision"))
    return DocumentFacts(
        tenant=fields["tenant"].decode(),
        title=fields.get("title", b"").decode(),
        tags=tuple(orjson.loads(fields.get("tags", b"[]"))),
        source=_text(fields, "source"),
        version=_text(fields, "version"),
        warnings=tuple(orjson.loads(fields.get("warnings", b"[]"))) if is_current else (),
        language=_text(fields, "language") if is_current else None,
    )


# fmt: off
STEMMERS: Final = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "eu": "basque", "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian",
    "id": "indonesian", "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch",
    "nn": "norwegian", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian",
    "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish", "zh": "chinese",
}
# fmt: on
"""The search module's stemmers by language. The one for Chinese splits a text into words."""


def stemmer_of(language: str | None) -> str:
    """The stemmer for a language in BCP 47; empty without one: the search module then uses that for English."""
    return STEMMERS.get((language or "").partition("-")[0], "")


_LANGUAGES: Final = {stemmer: code for code, stemmer in STEMMERS.items() if code != "en"}
"""The language of each stemmer. That for English serves all passages without one."""


def corpus_of(reply: Any) -> Corpus:
    """Parses a tenant's hash, as HGETALL returns it. Without fields the tenant has no documents."""
    fields = named(reply)
    languages = sorted(code for stemmer, code in _LANGUAGES.items() if f"stemmer:{stemmer}" in fields)
    documents, epoch, changed_ms = (int(fields.get(name, 0)) for name in ("documents", "epoch", "changed_ms"))
    return Corpus(documents, epoch, changed_ms, tuple(languages))


def document_of(document: str, fields: Fields, work: Fields) -> Document:
    """Builds a document from its hash and from the hash of its work (empty if there is none).

    A document is not ready while the cache still has to be invalidated: old answers may still be served.
    """
    status = fields["status"].decode()
    return Document(
        id=document,
        facts=facts_of(fields),
        status=cast(DocumentStatus, "processing" if status == "ready" and work else status),
        chunks=_int(fields, "chunks"),
        characters=_int(fields, "characters"),
        revision=_int(fields, "revision"),
        digest=(work.get("digest") or fields.get("digest", b"")).decode(),
        created_ms=_int(fields, "created_ms"),
        updated_ms=_int(fields, "updated_ms"),
        error=_text(fields, "error"),
        done=_int(work, "done"),
        total=_int(work, "total"),
        failed_chunks=tuple(FailedChunk(*one) for one in orjson.loads(fields.get("failed_chunks", b"[]"))),
        not_embedded=_int(fields, "not_embedded"),
        delayed_by=_text(work, "delayed_by"),
    )


def work_of(document: str, fields: Fields) -> Work:
    """Builds the work from its hash."""
    return Work(
        id=document,
        revision=_int(fields, "revision"),
        phase=cast(WorkPhase, fields["phase"].decode()),
        facts=facts_of(fields),
        media_type=_text(fields, "media_type"),
        digest=fields.get("digest", b"").decode(),
        replaced=_int(fields, "replaced") > 0,
        gone=_int(fields, "gone") > 0,
        pending_invalidation=_int(fields, "owes") > 0,
        attempts=_int(fields, "attempts"),
        holder=fields.get("holder", b"").decode(),
        untitled=_int(fields, "untitled") > 0,
        delays=_int(fields, "delays"),
    )


def chunk_fields(
    work: Work, embedded: EmbeddedChunk, texts: TextCipher = NO_CIPHER, key: str = ""
) -> list[str | bytes | int]:
    """A chunk as fields and values; every chunk has the same number of them.

    A chunk that could not be embedded is in the index without a vector. `key` is that of its hash.
    """
    chunk, facts = embedded.chunk, work.facts
    fields: dict[str, str | bytes | int] = {
        "owner": owner_of(facts.tenant),
        "document": work.id,
        "revision": work.revision,
        "number": chunk.number,
        "title": facts.title,
        **passage_texts(texts, key, chunk.heading, chunk.text),
        "tags": ",".join(map(tag_key, facts.tags)),
        "stemmer": stemmer_of(facts.language),
        "start": chunk.start,
        "end": chunk.end,
        "page": chunk.page or "",
        "span": f"{embedded.span[0]}-{embedded.span[1]}",
        "reach": f"{embedded.reach[0]}-{embedded.reach[1]}",
    }
    if embedded.vector is None:
        fields["failure"] = embedded.failure
    else:
        fields["vector"] = embedded.vector
    return [part for pair in fields.items() for part in pair]


def passage_texts(texts: TextCipher, key: str, heading: str, text: str) -> dict[str, str | bytes]:
    """The fields with a chunk's texts. Encrypted ones are not in the index: no word of them could be found."""
    if not texts.encrypts:
        return {"heading": heading, "text": text}
    return {SEALED: texts.encrypt(key, SEALED, orjson.dumps([heading, text]))}


def texts_of(texts: TextCipher, key: str, fields: Fields) -> tuple[str, str]:
    """The heading and the text of a chunk. Raises `Undecryptable`."""
    if (sealed := fields.get(SEALED)) is not None:
        heading, text = orjson.loads(texts.decrypt(key, SEALED, sealed))
        return heading, text
    return fields["heading"].decode(), fields["text"].decode("utf-8", "replace")


def chunk_of(fields: Fields, texts: TextCipher, key: str) -> Chunk:
    """Parses the fields of a chunk that readers need. Raises `Undecryptable`."""
    number, start, end = (_int(fields, name) for name in ("number", "start", "end"))
    heading, text = texts_of(texts, key, fields)
    return Chunk(number, text, heading, start, end, page_of(fields))


def page_of(fields: Fields) -> int | None:
    """The page of a chunk; None without pages, or if an older release wrote the chunk."""
    return _int(fields, "page") or None


def vector_of(fields: Fields) -> Vector | None:
    """The vector of a chunk, or None."""
    return fields.get("vector")


def range_of(text: bytes) -> tuple[int, int]:
    """Parses `12-345`."""
    start, _, end = text.partition(b"-")
    return int(start), int(end)


def _int(fields: Fields, name: str) -> int:
    return int(fields.get(name) or 0)


def _text(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    return value.decode() if value is not None else None


async def encrypted_upload(redis: HealthGated, keys: Keys, texts: TextCipher, document: str, content: bytes) -> str:
    """Uploads the content of a document, and returns its temporary key. Raises `UnreadableDocument`."""
    if content.startswith(CONTENT):
        raise UnreadableDocument("The file begins like an encrypted text of Ragherd.")
    if texts.encrypts:  # in a thread: of a large file it takes milliseconds
        content = await asyncio.to_thread(texts.encrypt_content, keys.document_text(document), content)
    return await uploaded(redis, keys, content)


async def decrypted_download(
    redis: HealthGated, keys: Keys, texts: TextCipher, document: str, key: str
) -> bytes | None:
    """Reads the content of a document: `key` is its text or its draft. Raises `Undecryptable`."""
    content = await downloaded(redis, key)
    if content is None or not content.startswith(CONTENT):
        return content
    return await asyncio.to_thread(texts.decrypt_content, keys.document_text(document), content)


LOOKED_AT: Final = 200
"""Documents per read when a list is filtered."""


class RedisDocuments:
    """The documents of the fleet. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._texts = redis.texts
        self._keys = keys
        self._propose = script(redis.client, "stores/documents/document_records", "propose")
        self._delete = script(redis.client, "stores/documents/document_records", "delete")

    async def propose(self, draft: Draft, most: int) -> Proposal:
        """Stores a draft to be ingested; the newest draft of a document wins. `most`: documents a tenant may have."""
        keys, owner = self._keys, owner_of(draft.facts.tenant)
        content = await encrypted_upload(self._redis, keys, self._texts, draft.id, draft.content)
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
        arguments = [draft.id, draft.digest, most, int(draft.refuse), len(facts) // 2, *facts, *further]
        verdict, revision, existed = await self._redis.run(
            "document_propose", lambda client: self._propose(names, arguments, client)
        )
        if verdict != b"accepted":
            await self._redis.run("document_propose", lambda client: client.unlink(content))
        if verdict == b"lost":
            raise StoreUnavailable("The upload took too long.")
        return Proposal(verdict.decode(), int(revision), bool(existed))

    async def find(self, document: str, tenant: str | None = None) -> Document | None:
        """Returns the document; None if it does not exist, or belongs to another tenant than `tenant`."""
        found = (await self._read([document]))[0]
        return found if found is not None and tenant in (None, found.facts.tenant) else None

    async def page(self, tenant: str, listing: Listing) -> Page:
        """Returns a page of a tenant's documents, newest first. The cursor is the time and the id of the last one."""
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

    async def holdings(self, tenant: str, most: int) -> Holdings:
        """Returns how many documents a tenant has in service, and the tags of the newest `most`, in two round trips."""
        keys, owner = self._keys, owner_of(tenant)
        newest = [document for document, _ in (await self._after(tenant, None, most))[0]]

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.hget(keys.corpus(owner), "documents")
                for document in newest:
                    pipe.hmget(keys.document(document), "revision", "tags")
                replies: list[Any] = await pipe.execute()
                return replies

        documents, *found = await self._redis.run("document_read", read)
        serving = [orjson.loads(tags or b"[]") for revision, tags in found if int(revision or 0) > 0]
        return Holdings(int(documents or 0), len(serving), _counted(serving))

    async def chunks(self, document: str, offset: int, limit: int) -> Sequence[Chunk]:
        """Returns chunks of the current revision, from an embedder that has embedded all of it."""
        keys = (self._keys.document(document), self._keys.document_chunks(document))
        fields, written = await self._redis.run("document_read", lambda client: _all(client, keys))
        revision = int(fields.get("revision", 0))
        done = [name[9:] for name, at in fields.items() if name.startswith("embedded:") and int(at) == revision]
        totals = {embedder: int(written.get(f"{embedder}:{revision}", 0)) for embedder in done}
        if not totals:
            return ()
        embedder = max(totals, key=lambda one: totals[one] == int(fields["chunks"]))
        numbers = range(offset, min(offset + limit, totals[embedder]))
        names = [self._keys.chunk(embedder, document, revision, number) for number in numbers]
        found = await self._redis.run("document_read", lambda client: _all(client, names))
        return [chunk_of(one, self._texts, name) for name, one in zip(names, found, strict=True) if one]

    async def delete(self, document: str, tenant: str | None = None) -> bool:
        """Deletes a document. Returns False if it does not exist, or belongs to another tenant."""
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
        return bool(await self._redis.run("document_delete", lambda client: self._delete(names, arguments, client)))

    async def _after(self, tenant: str, cursor: str | None, count: int) -> tuple[list[tuple[str, int]], bool]:
        """Returns up to `count` ids with their times, newest first, and whether they are the last."""
        key = self._keys.corpus_documents(owner_of(tenant))
        at, _, last = (cursor or "").partition("-")
        newest: Any = int(at) if at.isdigit() else "+inf"
        skipped = 0
        while True:
            reply: list[Any] = await self._redis.run(
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
        found = await self._redis.run("document_read", lambda client: _all(client, names))
        pairs = zip(documents, found[::2], found[1::2], strict=True)
        return [document_of(one, fields, work) if "status" in fields else None for one, fields, work in pairs]


def _counted(tags: Sequence[Sequence[str]]) -> tuple[tuple[str, int], ...]:
    """Counts the documents of each tag, in the first spelling: letter case does not matter."""
    spelled: dict[str, str] = {}
    counts = Counter(spelled.setdefault(tag.casefold(), tag) for one in tags for tag in one)
    return tuple(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


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


READ: Final = 500
"""Documents per read."""


class DocumentDigests:
    """Digests of the current documents. An answer depends on all documents of a tenant, not only those it cites.

    Every method raises `StoreUnavailable`.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._keys = keys

    async def serving(self, documents: Sequence[str]) -> Mapping[str, tuple[int, str]]:
        """Returns the revision and digest of each document that has a current revision."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for document in documents:
                    pipe.hmget(self._keys.document(document), "revision", "digest")
                replies: list[Any] = await pipe.execute()
                return replies

        replies = await self._redis.run("digests", read) if documents else []
        return {
            document: (int(revision), digest.decode())
            for document, (revision, digest) in zip(documents, replies, strict=True)
            if int(revision or 0) > 0 and digest is not None
        }

    async def corpus(self, tenant: str) -> tuple[int, str]:
        """Returns the epoch of a tenant's documents, and a digest over all current ones.

        The digest is empty if they change meanwhile.
        """
        before = await self.epoch(tenant)
        found: dict[str, tuple[int, str]] = {}
        for start in range(0, max(await self._count(tenant), 1), READ):
            found |= await self.serving(await self._listed(tenant, start))
        lines = sorted(f"{document} {digest}" for document, (_, digest) in found.items())
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return before, digest if await self.epoch(tenant) == before else ""

    async def epoch(self, tenant: str) -> int:
        """Returns how often the tenant's documents have changed."""
        key = self._keys.corpus(owner_of(tenant))
        return int(await self._redis.run("digests", lambda client: client.hget(key, "epoch")) or 0)

    async def _count(self, tenant: str) -> int:
        key = self._keys.corpus_documents(owner_of(tenant))
        return int(await self._redis.run("digests", lambda client: client.zcard(key)))

    async def _listed(self, tenant: str, start: int) -> list[str]:
        key = self._keys.corpus_documents(owner_of(tenant))
        found: Any = await self._redis.run("digests", lambda client: client.zrange(key, start, start + READ - 1))
        return [document.decode() for document in found]
