"""Reads and writes the backup format: JSON lines, one object per line. docs/upgrades.md describes it.

The last line holds a checksum, which proves that a file is complete. `verify_backup` reads the whole file first; a
damaged file is not restored at all. Unknown kinds of lines and unknown fields come from later releases and are ignored.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final

import orjson

from api.ports.backup_storage import StoredAnswer, StoredDocument
from api.ports.document_store import Chunk, Document, DocumentFacts
from api.ports.document_work import EmbeddedChunk
from api.values import known


class BackupError(Exception):
    """The file is truncated, damaged, in a newer format, or not a backup."""


FORMAT: Final = 1
CHUNKS_PER_LINE: Final = 200
"""Chunks per line."""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """The first line. The `expected` counts feed the progress bar; the exact counts are in the last line."""

    format: int
    created: str
    release: str
    schema: str
    documents: bool
    cache: bool
    tenants: tuple[str, ...]
    expected_documents: int = 0
    expected_answers: int = 0
    created_ms: int = 0
    """The same time as `created`; 0 in a backup of an older release."""

    @property
    def end_of_creation_ms(self) -> int:
        """The last millisecond that `created` may mean, which has whole seconds. Raises `BackupError`."""
        if self.created_ms:
            return self.created_ms
        try:
            return int(datetime.fromisoformat(self.created).timestamp() * 1000) + 999
        except ValueError:
            raise BackupError("it does not say when it was taken") from None

    def line(self) -> Line:
        """Returns the line to write."""
        return {"is": "header", **asdict(self)}


def document_lines(stored: StoredDocument) -> list[Line]:
    """Returns the line of a document, then the lines of its chunks."""
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
    parts = [chunks[start : start + CHUNKS_PER_LINE] for start in range(0, len(chunks), CHUNKS_PER_LINE)]
    about = {"is": "chunks", "document": stored.document.id, "embedder": embedder}
    return [{**about, "chunks": [_chunk(one, stored.text) for one in part]} for part in parts]


def _chunk(one: EmbeddedChunk, text: str) -> Line:
    """Returns a chunk. Includes its text only if it differs from that part of the document."""
    chunk = one.chunk
    own = {} if text[chunk.start : chunk.end] == chunk.text else {"text": chunk.text}
    place = {"number": chunk.number, "heading": chunk.heading, "start": chunk.start, "end": chunk.end}
    if chunk.page is not None:
        place["page"] = chunk.page
    embedded = {"failure": one.failure} if one.vector is None else {"vector": _encode(one.vector)}
    return {**place, **own, "span": one.span, "reach": one.reach, **embedded}


def document_of(head: Line, chunk_lines: Sequence[Line]) -> StoredDocument:
    """Parses a document. Raises `KeyError`, `ValueError` or `TypeError` for invalid lines."""
    lists = {name: tuple(head.get(name, ())) for name in ("tags", "warnings")}
    facts = known(DocumentFacts, {**head, **lists})
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
    chunk = Chunk(int(one["number"]), one.get("text", text[start:end]), one["heading"], start, end, one.get("page"))
    failure = str(one.get("failure", ""))
    vector = None if failure else _decode(one["vector"])
    return EmbeddedChunk(chunk, vector, (*one["span"],), (*one["reach"],), failure)


def answer_line(answer: StoredAnswer) -> Line:
    """Returns the line of one cache entry."""
    vector = None if answer.vector is None else _encode(answer.vector)
    return {"is": "answer", **asdict(answer), "fields": dict(answer.fields), "vector": vector}


def answer_of(line: Line) -> StoredAnswer:
    """Parses a cache entry. Raises `KeyError`, `ValueError` or `TypeError` for an invalid line."""
    vector = None if line["vector"] is None else _decode(line["vector"])
    answer = known(StoredAnswer, {**line, "vector": vector})
    _ = (answer.created_ms, answer.tenant, int(answer.fields["expires_ms"]), answer.gone_ms + answer.uses)
    return answer


def deletions_line(marks: Mapping[str, int]) -> Line:
    """Returns the line of deletion marks and their times."""
    return {"is": "deleted", "marks": dict(marks)}


def corpora_line(digests: Mapping[str, str]) -> Line:
    """Returns the line with each tenant's corpus digest while its answers were read; empty if the corpus changed
    meanwhile.
    """
    return {"is": "corpora", "tenants": dict(digests)}


def _encode(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


GZIP_LEVEL: Final = 6
GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS
"""zlib's name for it."""


class BackupWriter:
    """Writes a backup to `stream`, which the caller closes. `plain`: without compression."""

    def __init__(self, stream: BinaryIO, *, plain: bool = False) -> None:
        self._stream = stream
        # Not GzipFile: that of a failed backup would end its file, which is closed by then.
        self._packer = None if plain else zlib.compressobj(GZIP_LEVEL, wbits=GZIP_FORMAT)
        self._sha = hashlib.sha256()
        self.counts: Counter[str] = Counter()
        """Number of lines by kind."""

    def write(self, line: Line) -> None:
        """Writes one line."""
        text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._sha.update(text)
        self._stream.write(self._packer.compress(text) if self._packer else text)
        self.counts[line["is"]] += 1

    def end(self) -> None:
        """Writes the last line with the counts and the checksum."""
        end = {"is": "end", "lines": dict(self.counts), "sha256": self._sha.hexdigest()}
        text = orjson.dumps(end, option=orjson.OPT_APPEND_NEWLINE)
        self._stream.write(self._packer.compress(text) + self._packer.flush() if self._packer else text)


MAGIC: Final = b"\x1f\x8b"
DAMAGED: Final = "it is damaged, or not a Ragherd backup"
TRUNCATED: Final = "it is truncated: its last line is missing"


@dataclass(frozen=True, slots=True)
class VerifiedBackup:
    """A complete backup: its header, the number of lines of each kind, and the corpus digest of each tenant."""

    header: Header
    lines: Counter[str]
    corpora: dict[str, str]


def verify_backup(file: BinaryIO) -> VerifiedBackup:
    """Verifies a whole backup. `file` must be seekable. Raises `BackupError`."""
    sha, counts, corpora = hashlib.sha256(), Counter[str](), dict[str, str]()
    header: Header | None = None
    end: Line | None = None
    for text in _texts(file):
        if end is not None:
            raise BackupError("it is damaged: there is data after its last line")
        line = _parsed(text)
        if header is None:
            header = _header(line)
        if line["is"] == "end":
            end = line
            continue
        if line["is"] == "corpora" and isinstance(line.get("tenants"), dict):
            corpora |= line["tenants"]
        sha.update(text)
        counts[line["is"]] += 1
    if header is None or end is None:
        raise BackupError(TRUNCATED if header else "it is empty")
    if end.get("sha256") != sha.hexdigest() or end.get("lines") != dict(counts):
        raise BackupError("it is damaged: its checksum does not match")
    return VerifiedBackup(header, counts, corpora)


def lines(file: BinaryIO) -> Iterator[Line]:
    """Yields all lines of a verified file."""
    for text in _texts(file):
        yield _parsed(text)


def documents(file: BinaryIO) -> Iterator[StoredDocument]:
    """Yields each document with its chunks. Raises `BackupError`."""
    head: Line | None = None
    chunks: list[Line] = []
    for line in lines(file):
        if line["is"] == "chunks":
            chunks.append(line)
        else:
            if head is not None:
                yield _document(head, chunks)
            head, chunks = (line, []) if line["is"] == "document" else (None, [])


def answers(file: BinaryIO) -> Iterator[StoredAnswer]:
    """Yields the cached answers. Raises `BackupError`."""
    for line in lines(file):
        if line["is"] == "answer":
            try:
                yield answer_of(line)
            except (KeyError, ValueError, TypeError) as error:
                raise BackupError(f"it contains an unreadable answer: {error!r}") from None


def deletions(file: BinaryIO) -> dict[str, int]:
    """Returns the deletion marks and their times."""
    found = [line["marks"] for line in lines(file) if line["is"] == "deleted"]
    return {str(mark): int(at) for marks in found for mark, at in marks.items()}


def _document(head: Line, chunks: list[Line]) -> StoredDocument:
    try:
        return document_of(head, chunks)
    except (KeyError, ValueError, TypeError) as error:
        raise BackupError(f"it contains an unreadable document: {error!r}") from None


def _header(line: Line) -> Header:
    if line["is"] != "header" or not isinstance(line.get("format"), int):
        raise BackupError("it is not a Ragherd backup")
    if line["format"] > FORMAT:
        release = line.get("release", "a later release")
        raise BackupError(
            f"it has format {line['format']} of Ragherd {release}; this release reads formats up to {FORMAT}"
        )
    try:
        return known(Header, {**line, "tenants": tuple(line["tenants"])})
    except (KeyError, TypeError):
        raise BackupError("it is not a Ragherd backup") from None


def _parsed(text: bytes) -> Line:
    try:
        line: Any = orjson.loads(text)
    except ValueError:
        raise BackupError(DAMAGED if text.endswith(b"\n") else TRUNCATED) from None
    if not isinstance(line, dict) or not isinstance(line.get("is"), str):
        raise BackupError("it is not a Ragherd backup")
    return line


def _texts(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    packed = file.read(2) == MAGIC
    file.seek(0)
    try:
        yield from gzip.GzipFile(fileobj=file, mode="rb") if packed else file
    except EOFError:
        raise BackupError(TRUNCATED) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BackupError(f"it is damaged: {error}") from None
