"""Documents, work and chunks as the hashes of Redis hold them: pure translation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import orjson

from api.model import Vector
from api.ports.document_work import EmbeddedChunk, Work, WorkPhase
from api.ports.documents import Chunk, Document, DocumentFacts, DocumentStatus, FailedChunk

Fields = Mapping[str, bytes]


def owner_of(tenant: str) -> str:
    """A tenant as a tag and in a key: 16 hex digits, since its name may hold anything."""
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def tag_key(tag: str) -> str:
    """A tag as the index has it: 16 hex digits, the same however it is written in capitals."""
    return hashlib.sha256(tag.strip().casefold().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def named(reply: Any) -> dict[str, bytes]:
    """The reply of HGETALL by name, as a map or as a flat list."""
    pairs = reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def fact_fields(facts: DocumentFacts) -> dict[str, str | bytes]:
    """What is said of a document; a field that is not given is left out."""
    given = {"source": facts.source, "version": facts.version}
    fixed: dict[str, str | bytes] = {"tenant": facts.tenant, "title": facts.title, "tags": orjson.dumps(facts.tags)}
    return {**fixed, **{name: value for name, value in given.items() if value is not None}}


def facts_of(fields: Fields) -> DocumentFacts:
    """The reverse."""
    return DocumentFacts(
        tenant=fields["tenant"].decode(),
        title=fields.get("title", b"").decode(),
        tags=tuple(orjson.loads(fields.get("tags", b"[]"))),
        source=_text(fields, "source"),
        version=_text(fields, "version"),
    )


def document_of(document: str, fields: Fields, work: Fields) -> Document:
    """A document from its hash, and from that of the work on it (empty where there is none).

    As long as the cache has not been told of a change, the document is not ready: it may have answers from before.
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
    """What is left to do, from its hash."""
    return Work(
        id=document,
        revision=_int(fields, "revision"),
        phase=cast(WorkPhase, fields["phase"].decode()),
        facts=facts_of(fields),
        media_type=_text(fields, "media_type"),
        digest=fields.get("digest", b"").decode(),
        replaced=_int(fields, "replaced") > 0,
        gone=_int(fields, "gone") > 0,
        owes=_int(fields, "owes") > 0,
        attempts=_int(fields, "attempts"),
        holder=fields.get("holder", b"").decode(),
        untitled=_int(fields, "untitled") > 0,
        delays=_int(fields, "delays"),
    )


def chunk_fields(work: Work, embedded: EmbeddedChunk) -> list[str | bytes | int]:
    """A chunk as fields and values, always as many. One that is not embedded is in the index, without a vector."""
    chunk, facts = embedded.chunk, work.facts
    fields: dict[str, str | bytes | int] = {
        "owner": owner_of(facts.tenant),
        "document": work.id,
        "revision": work.revision,
        "number": chunk.number,
        "title": facts.title,
        "heading": chunk.heading,
        "text": chunk.text,
        "tags": ",".join(map(tag_key, facts.tags)),
        "start": chunk.start,
        "end": chunk.end,
        "span": f"{embedded.span[0]}-{embedded.span[1]}",
        "reach": f"{embedded.reach[0]}-{embedded.reach[1]}",
    }
    if embedded.vector is None:
        fields["failure"] = embedded.failure
    else:
        fields["vector"] = embedded.vector
    return [part for pair in fields.items() for part in pair]


def chunk_of(fields: Fields) -> Chunk:
    """The reverse, as far as readers want it."""
    number, start, end = (_int(fields, name) for name in ("number", "start", "end"))
    return Chunk(number, fields["text"].decode("utf-8", "replace"), fields["heading"].decode(), start, end)


def vector_of(fields: Fields) -> Vector | None:
    """The chunk's vector."""
    return fields.get("vector")


def range_of(text: bytes) -> tuple[int, int]:
    """`12-345` as numbers."""
    start, _, end = text.partition(b"-")
    return int(start), int(end)


def _int(fields: Fields, name: str) -> int:
    return int(fields.get(name) or 0)


def _text(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    return value.decode() if value is not None else None
