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
_PARSED: Final = {
    ".py": ("text/x-python", "tree_sitter_python", "language"),
    ".js": ("text/x-javascript", "tree_sitter_javascript", "language"),
    ".jsx": ("text/x-javascript", "tree_sitter_javascript", "language"),
    ".ts": ("text/x-typescript", "tree_sitter_typescript", "language_typescript"),
    ".tsx": ("text/x-tsx", "tree_sitter_typescript", "language_tsx"),
    ".go": ("text/x-go", "tree_sitter_go", "language"),
    ".rs": ("text/x-rust", "tree_sitter_rust", "language"),
    ".java": ("text/x-java", "tree_sitter_java", "language"),
    ".c": ("text/x-c", "tree_sitter_c", "language"),
    ".h": ("text/x-cpp", "tree_sitter_cpp", "language"),
    ".cc": ("text/x-cpp", "tree_sitter_cpp", "language"),
    ".cpp": ("text/x-cpp", "tree_sitter_cpp", "language"),
    ".hpp": ("text/x-cpp", "tree_sitter_cpp", "language"),
    ".cs": ("text/x-csharp", "tree_sitter_c_sharp", "language"),
    ".rb": ("text/x-ruby", "tree_sitter_ruby", "language"),
    ".php": ("text/x-php", "tree_sitter_php", "language_php"),
}
_PARSED_BY_SUFFIX: Final = {suffix: kind for suffix, (kind, _, _) in _PARSED.items()}
LANGUAGES: Final = {kind: (package, function) for kind, package, function in _PARSED.values()}
"""Kinds of source code that the extra `code` splits by syntax: the package of the grammar, and its function."""
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
KINDS: Final = frozenset(BY_SUFFIX.values()) | LANGUAGES.keys()
"""All kinds."""
_ARCHIVES: Final = frozenset((PDF, DOCX, ZIP, *OFFICE.values()))
"""Kinds that are not text, or may not be."""
_BINARY: Final = (b"\x7fELF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"Rar!")
SHOWN: Final = 200
"""Characters of a file's name in an error."""
_SUPPORTED: Final = f"Supported: {', '.join(sorted(BY_SUFFIX))}."


def readable() -> frozenset[str]:
    """The kinds that this installation reads."""
    office = () if find_spec("kreuzberg") is not None else OFFICE.values()
    return KINDS.difference(office, () if _splits_code() else LANGUAGES)


def _splits_code() -> bool:
    return find_spec("tree_sitter") is not None


def media_type(file_name: str | None, declared: str | None, head: bytes) -> str:
    """One of the kinds above. `head`: the first bytes. Raises `UnsupportedDocument`."""
    suffix = PurePath(file_name or "").suffix.lower()
    named = BY_SUFFIX.get(suffix)
    said = (declared or "").partition(";")[0].strip().lower()
    kind = named or (said if said in KINDS else None)
    if kind == CODE:
        kind = _PARSED_BY_SUFFIX.get(suffix, CODE)
    if kind in LANGUAGES and not _splits_code():
        kind = CODE
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
