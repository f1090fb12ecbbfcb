"""Which files a folder has for the knowledge base, and what each is known by.

A file's source begins with the id of its folder: the folder's name, and a digest of its host and path. So two projects
that both have a folder `docs` do not share documents. A collection's name takes the place of that id where a folder
moves, or is read on several hosts.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.knowledge.media_types import BY_SUFFIX
from api.knowledge.plain_text import FENCED, heading_words

_HEADING: Final = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """`source`: the id of its folder, or the collection, and the path below it in POSIX form."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a kind that is read, and how many others there are, links among them.

    `folders`: what the sources of the files of each named folder begin with, without the slash.
    """

    files: tuple[DocumentFile, ...]
    skipped: int
    folders: tuple[str, ...] = ()


class SameSource(Exception):
    """Two files would be known by the same: the later would replace the earlier, each time."""


def find(paths: Sequence[Path], collection: str | None = None) -> Found:
    """In the order of their names. What is hidden is left out, and no link is followed.

    Raises `SameSource`, and `OSError` for a folder that cannot be read.
    """
    files: dict[Path, DocumentFile] = {}
    known: dict[str, Path] = {}
    folders: dict[str, None] = {}
    skipped = 0
    for named in (path.resolve() for path in paths):
        folder = named if named.is_dir() else named.parent
        prefix = collection or folder_id(folder)
        if named.is_dir():
            folders[prefix] = None
        for path in _files(named):
            if path.suffix.lower() in BY_SUFFIX and path.is_file() and not path.is_symlink():
                file = files.setdefault(path, DocumentFile(path, f"{prefix}/{path.relative_to(folder).as_posix()}"))
                if (other := known.setdefault(file.source, path)) != path:
                    raise SameSource(f"{other} and {path} would both be '{file.source}': ingest a folder above both")
            else:
                skipped += 1
    return Found(tuple(files.values()), skipped, tuple(folders))


def folder_id(folder: Path) -> str:
    """`docs@3fa9c1d204`: the same for one folder of one host, and for no other."""
    place = f"{socket.gethostname()}\n{folder}".encode("utf-8", "surrogateescape")
    return f"{folder.name}@{hashlib.sha256(place).hexdigest()[:10]}"


def former_source(source: str) -> str:
    """What releases up to 0.1 knew a file by: the folder's name alone stood for the folder."""
    folder, _, below = source.partition("/")
    return f"{folder.rpartition('@')[0]}/{below}"


def title_of(file: DocumentFile, content: bytes) -> str | None:
    """The first heading of Markdown; else the file's name, but for kinds that have a title of their own (None)."""
    if file.path.suffix.lower() in {".md", ".markdown"}:
        found = _HEADING.search(FENCED.sub("", content[:65_536].decode("utf-8", "replace")))
        return heading_words(found[1])[:500] if found else file.path.stem
    return file.path.stem if file.path.suffix.lower() in {".txt", ".text"} else None


def _files(path: Path) -> Iterator[Path]:
    """A folder's, and all below; a link, a pipe and the like are what they are."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        if not child.name.startswith("."):
            yield from _files(child)
