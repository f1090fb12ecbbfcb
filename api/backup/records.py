"""The lines of a backup: JSON objects, one a line. docs/upgrades.md describes the format. Pure translation.

A line of a kind that is not known, and a field that is not, were added by a later release and are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from api.model import known
from api.ports.backup import StoredAnswer, StoredDocument
from api.ports.document_work import EmbeddedChunk
from api.ports.documents import Chunk, Document, DocumentFacts

FORMAT: Final = 1
CHUNKS: Final = 200
"""Chunks on one line."""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """The first line. `expected` is for the progress bar: what is counted stands at the end."""

    format: int
    created: str
    release: str
    schema: str
    documents: bool
    cache: bool
    tenants: tuple[str, ...]
    expected_documents: int = 0
    expected_answers: int = 0

    def line(self) -> Line:
        """As it is written."""
        return {"is": "header", **asdict(self)}


def document_lines(stored: StoredDocument) -> list[Line]:
    """A document, then its chunks."""
    one, facts = stored.document, stored.document.facts
    head = {
        "is": "document",
        "id": one.id,
        **asdict(facts),
        "digest": one.digest,
        "revision": one.revision,
        "characters": one.characters,
        "created_ms": one.created_ms,
        "updated_ms": one.updated_ms,
        "sets": {embedder: len(chunks) for embedder, chunks in stored.sets.items()},
        "text": stored.text,
    }
    return [
        head,
        *(line for embedder, chunks in stored.sets.items() for line in _chunk_lines(stored, embedder, chunks)),
    ]


def _chunk_lines(stored: StoredDocument, embedder: str, chunks: Sequence[EmbeddedChunk]) -> list[Line]:
    parts = [chunks[start : start + CHUNKS] for start in range(0, len(chunks), CHUNKS)]
    about = {"is": "chunks", "document": stored.document.id, "embedder": embedder}
    return [{**about, "chunks": [_chunk(one, stored.text) for one in part]} for part in parts]


def _chunk(one: EmbeddedChunk, text: str) -> Line:
    """Its text only where it is not simply that part of the document's."""
    chunk = one.chunk
    own = {} if text[chunk.start : chunk.end] == chunk.text else {"text": chunk.text}
    place = {"number": chunk.number, "heading": chunk.heading, "start": chunk.start, "end": chunk.end}
    embedded = {"failure": one.failure} if one.vector is None else {"vector": _encoded(one.vector)}
    return {**place, **own, "span": one.span, "reach": one.reach, **embedded}


def document_of(head: Line, chunk_lines: Sequence[Line]) -> StoredDocument:
    """The reverse. Raises `KeyError`, `ValueError`, `TypeError` for what is none."""
    facts = known(DocumentFacts, {**head, "tags": tuple(head["tags"])})
    document = Document(
        id=head["id"],
        facts=facts,
        status="ready",
        chunks=0,
        characters=int(head["characters"]),
        revision=int(head["revision"]),
        digest=head["digest"],
        created_ms=int(head["created_ms"]),
        updated_ms=int(head["updated_ms"]),
    )
    sets: dict[str, list[EmbeddedChunk]] = {embedder: [] for embedder in head["sets"]}
    for line in chunk_lines:
        sets[line["embedder"]] += [_chunk_of(one, head["text"]) for one in line["chunks"]]
    if {embedder: len(chunks) for embedder, chunks in sets.items()} != head["sets"]:
        raise ValueError("chunks are missing")
    return StoredDocument(document, head["text"], sets)


def _chunk_of(one: Line, text: str) -> EmbeddedChunk:
    start, end = int(one["start"]), int(one["end"])
    chunk = Chunk(int(one["number"]), one.get("text", text[start:end]), one["heading"], start, end)
    failure = str(one.get("failure", ""))
    vector = None if failure else _decoded(one["vector"])
    return EmbeddedChunk(chunk, vector, (*one["span"],), (*one["reach"],), failure)


def answer_line(answer: StoredAnswer) -> Line:
    """One entry of the cache."""
    vector = None if answer.vector is None else _encoded(answer.vector)
    return {"is": "answer", **asdict(answer), "fields": dict(answer.fields), "vector": vector}


def answer_of(line: Line) -> StoredAnswer:
    """The reverse. Raises `KeyError`, `ValueError`, `TypeError` for what is none."""
    vector = None if line["vector"] is None else _decoded(line["vector"])
    answer = known(StoredAnswer, {**line, "vector": vector})
    _ = (answer.created_ms, answer.tenant, int(answer.fields["expires_ms"]), answer.gone_ms + answer.uses)
    return answer


def deletions_line(marks: Mapping[str, int]) -> Line:
    """What was deleted, and when."""
    return {"is": "deleted", "marks": dict(marks)}


def corpora_line(digests: Mapping[str, str]) -> Line:
    """The digest of each tenant's documents while the answers were read; empty where they changed meanwhile."""
    return {"is": "corpora", "tenants": dict(digests)}


def _encoded(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
