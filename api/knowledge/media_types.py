"""Which kind of file it is: by its content, its name, or what its sender says. Pure."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from api.errors import UnsupportedDocument

TEXT: Final = "text/plain"
MARKDOWN: Final = "text/markdown"
HTML: Final = "text/html"
PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

BY_SUFFIX: Final = {
    ".txt": TEXT,
    ".text": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
}
PLAIN: Final = frozenset({TEXT, MARKDOWN})
"""Kinds that are text already."""
KINDS: Final = frozenset(BY_SUFFIX.values())
"""All that are read."""
_BINARY: Final = (b"\x7fELF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x1f\x8b", b"MZ", b"\xd0\xcf\x11\xe0", b"Rar!")
_READ: Final = f"read are {', '.join(sorted(BY_SUFFIX))}"


def media_type(file_name: str | None, declared: str | None, head: bytes) -> str:
    """One of those above. `head`: the first bytes. Raises `UnsupportedDocument`."""
    named = BY_SUFFIX.get(PurePath(file_name or "").suffix.lower())
    said = (declared or "").partition(";")[0].strip().lower()
    kind = named or (said if said in KINDS else None)
    if head.lstrip()[:5] == b"%PDF-":
        return PDF
    if kind is None:
        raise UnsupportedDocument(f"The kind of {_described(file_name, said)} is not known: {_READ}.")
    if kind not in {PDF, DOCX} and (head.startswith((b"PK\x03\x04", *_BINARY)) or _is_binary(head)):
        raise UnsupportedDocument(f"{_described(file_name, said)} is no text: {_READ}.")
    return kind


def _is_binary(head: bytes) -> bool:
    """UTF-16 and UTF-32 have zeros too, but begin with a mark."""
    return b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))


def _described(file_name: str | None, said: str) -> str:
    return f"'{file_name}'" if file_name else f"a file of type '{said or 'unknown'}'"
