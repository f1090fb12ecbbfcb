"""Which document is which: pure.

A document is known by its `source`, within its tenant: what is given under the same source replaces it. Without one it
is known by its title where it has a `version`, since that is a version of something, or by its file's name where it has
no title; else by its content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import orjson

from api.ports.documents import DocumentFacts

_ID: Final = re.compile(r"[0-9a-f]{24}")


def is_document_id(text: str) -> bool:
    """Whether a document may have it: others would name what is kept beside one in Redis."""
    return _ID.fullmatch(text) is not None


def document_id(facts: DocumentFacts, content: bytes, file_name: str = "") -> str:
    """24 hex digits."""
    name = facts.title or file_name
    if facts.source is not None:
        known_by = ["source", facts.source]
    elif facts.version is not None and name:
        known_by = ["title", name]
    else:
        known_by = ["content", facts.title, hashlib.sha256(content).hexdigest()]
    return _digest([facts.tenant, *known_by])[:24]


def content_digest(facts: DocumentFacts, content: bytes, media_type: str) -> str:
    """64 hex digits over all that was given: the same is not stored twice."""
    said = [facts.tenant, facts.title, sorted(facts.tags), facts.source, facts.version, media_type]
    return _digest([*said, hashlib.sha256(content).hexdigest()])


def _digest(facts: Sequence[object]) -> str:
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()
