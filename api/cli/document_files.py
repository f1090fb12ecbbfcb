"""Which files a folder has for the knowledge base, and what each is known by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.knowledge.media_types import BY_SUFFIX
from api.knowledge.plain_text import FENCED, heading_words

_HEADING: Final = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """`source`: its path from the folder that was named, with that folder's own name, in POSIX form."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a kind that is read, and how many others there are, links among them."""

    files: tuple[DocumentFile, ...]
    skipped: int


class SameSource(Exception):
    """Two files would be known by the same: the later would replace the earlier, each time."""


def find(paths: Sequence[Path]) -> Found:
    """In the order of their names. What is hidden is left out, and no link is followed.

    Raises `SameSource`, and `OSError` for a folder that can not be looked into.
    """
    files: dict[Path, DocumentFile] = {}
    known: dict[str, Path] = {}
    skipped = 0
    for named in paths:
        base = named.resolve().parent
        for path in _files(named.resolve()):
            if path.suffix.lower() in BY_SUFFIX and path.is_file() and not path.is_symlink():
                file = files.setdefault(path, DocumentFile(path, path.relative_to(base).as_posix()))
                if (other := known.setdefault(file.source, path)) != path:
                    raise SameSource(f"{other} and {path} would both be '{file.source}': ingest a folder above both")
            else:
                skipped += 1
    return Found(tuple(files.values()), skipped)


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
