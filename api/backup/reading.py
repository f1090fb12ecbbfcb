"""Reads a backup, compressed or not. `checked` goes over all of it first: what is not whole is not restored at all."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import orjson

from api.backup.errors import BackupError
from api.backup.records import FORMAT, Header, Line, answer_of, document_of
from api.model import known
from api.ports.backup import StoredAnswer, StoredDocument

MAGIC: Final = b"\x1f\x8b"
DAMAGED: Final = "it is damaged, or no backup of Ragherd's"
TRUNCATED: Final = "it is truncated: its last line is missing"


@dataclass(frozen=True, slots=True)
class Checked:
    """A whole backup: its first line, the number of lines of each kind, and the tenants' documents by their digests."""

    header: Header
    lines: Counter[str]
    corpora: dict[str, str]


def checked(file: BinaryIO) -> Checked:
    """Raises `BackupError`. `file` can be sought in."""
    sha, counts, corpora = hashlib.sha256(), Counter[str](), dict[str, str]()
    header: Header | None = None
    end: Line | None = None
    for text in _texts(file):
        if end is not None:
            raise BackupError("it is damaged: there is something after its end")
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
        raise BackupError("it is damaged: its digest is another")
    return Checked(header, counts, corpora)


def lines(file: BinaryIO) -> Iterator[Line]:
    """All lines of a file that was checked."""
    for text in _texts(file):
        yield _parsed(text)


def documents(file: BinaryIO) -> Iterator[StoredDocument]:
    """Each with its chunks. Raises `BackupError`."""
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
    """Raises `BackupError`."""
    for line in lines(file):
        if line["is"] == "answer":
            try:
                yield answer_of(line)
            except (KeyError, ValueError, TypeError) as error:
                raise BackupError(f"an answer in it can not be read: {error!r}") from None


def deletions(file: BinaryIO) -> dict[str, int]:
    """What had been deleted, and when."""
    found = [line["marks"] for line in lines(file) if line["is"] == "deleted"]
    return {str(mark): int(at) for marks in found for mark, at in marks.items()}


def _document(head: Line, chunks: list[Line]) -> StoredDocument:
    try:
        return document_of(head, chunks)
    except (KeyError, ValueError, TypeError) as error:
        raise BackupError(f"a document in it can not be read: {error!r}") from None


def _header(line: Line) -> Header:
    if line["is"] != "header" or not isinstance(line.get("format"), int):
        raise BackupError("it is no backup of Ragherd's")
    if line["format"] > FORMAT:
        release = line.get("release", "a later release")
        raise BackupError(f"it has format {line['format']}, of Ragherd {release}; this release reads up to {FORMAT}")
    try:
        return known(Header, {**line, "tenants": tuple(line["tenants"])})
    except (KeyError, TypeError):
        raise BackupError("it is no backup of Ragherd's") from None


def _parsed(text: bytes) -> Line:
    try:
        line: Any = orjson.loads(text)
    except ValueError:
        raise BackupError(DAMAGED if text.endswith(b"\n") else TRUNCATED) from None
    if not isinstance(line, dict) or not isinstance(line.get("is"), str):
        raise BackupError("it is no backup of Ragherd's")
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
