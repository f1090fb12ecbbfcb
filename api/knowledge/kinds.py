"""The kinds of files that are read. A file's kind is known by its content, its name or its declared type."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import PurePath
from typing import Final

from api.errors import UnsupportedDocument
from api.unicode_text import one_line

TEXT: Final = "text/plain"
MARKDOWN: Final = "text/markdown"
HTML: Final = "text/html"
PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
CSV: Final = "text/csv"
TSV: Final = "text/tab-separated-values"
CODE: Final = "text/x-source"
"""Source code and data in a text format, which are kept as they are."""
EMAIL: Final = "message/rfc822"
ZIP: Final = "application/zip"

OFFICE: Final = {
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".rtf": "application/rtf",
    ".epub": "application/epub+zip",
    ".msg": "application/vnd.ms-outlook",
    ".ipynb": "application/x-ipynb+json",
    ".rst": "text/x-rst",
}
"""Kinds that the extra `formats` reads."""
_CODE_SUFFIXES: Final = """
.c .cc .cfg .conf .cpp .cs .css .dart .go .h .hpp .ini .java .js .json .jsonl .jsx .kt .lua .php .pl .ps1 .py .r .rb
.rs .scala .sh .sql .swift .tf .toml .ts .tsx .xml .yaml .yml
"""
BY_SUFFIX: Final = {
    ".txt": TEXT,
    ".text": TEXT,
    ".log": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
    ".csv": CSV,
    ".tsv": TSV,
    ".eml": EMAIL,
    ".zip": ZIP,
    **dict.fromkeys(_CODE_SUFFIXES.split(), CODE),
    **OFFICE,
}
PLAIN: Final = frozenset({TEXT, MARKDOWN, CODE})
"""Kinds that are plain text."""
KINDS: Final = frozenset(BY_SUFFIX.values())
"""All kinds."""
_ARCHIVES: Final = frozenset((PDF, DOCX, ZIP, *OFFICE.values()))
"""Kinds that are not text, or may not be."""
_BINARY: Final = (b"\x7fELF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"Rar!")
SHOWN: Final = 200
"""Characters of a file's name in an error."""
_SUPPORTED: Final = f"Supported: {', '.join(sorted(BY_SUFFIX))}."


def readable() -> frozenset[str]:
    """The kinds that this installation reads."""
    return KINDS if find_spec("kreuzberg") is not None else KINDS - frozenset(OFFICE.values())


def media_type(file_name: str | None, declared: str | None, head: bytes) -> str:
    """One of the kinds above. `head`: the first bytes. Raises `UnsupportedDocument`."""
    named = BY_SUFFIX.get(PurePath(file_name or "").suffix.lower())
    said = (declared or "").partition(";")[0].strip().lower()
    kind = named or (said if said in KINDS else None)
    if head.lstrip()[:5] == b"%PDF-":
        return PDF
    if kind is None:
        raise UnsupportedDocument(f"The type of {_described(file_name, said)} is not supported. {_SUPPORTED}")
    if kind not in _ARCHIVES and (head.startswith((b"PK\x03\x04", *_BINARY)) or _is_binary(head)):
        raise UnsupportedDocument(f"The content of {_described(file_name, said)} is not text. {_SUPPORTED}")
    if kind not in readable():
        raise UnsupportedDocument(f"To read {_described(file_name, said)}, install the extra: ragherd[formats].")
    return kind


def _is_binary(head: bytes) -> bool:
    """UTF-16 and UTF-32 contain zeros too, but begin with a byte order mark."""
    return b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))


def _described(file_name: str | None, said: str) -> str:
    return f"'{one_line(file_name, SHOWN)}'" if file_name else f"a file of type '{one_line(said, SHOWN) or 'unknown'}'"
