"""What an entry of the cache says of the documents that it depends on: pure translation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from api.ports.answers import Grounds
from api.ports.outdated_answers import CachedQuestion
from api.ports.passages import DocumentFilter
from api.redis_store.document_fields import owner_of

COMPARED: Final = "meaning"
"""An entry that new documents are compared with, by the meaning of its question."""
EXACT: Final = "exact"
"""One that any new document changes, as far as can be told."""
WANTED: Final = ("tenant", "question", "top_k", "wanted", "vector")


def ground_fields(tenant: str, grounds: Grounds, *, has_vector: bool) -> dict[str, Any]:
    """The fields of an entry that depends on documents."""
    return {
        "owner": owner_of(tenant),
        "compared": COMPARED if has_vector and grounds.corpus.documents else EXACT,
        "epoch": grounds.corpus.epoch,
        "top_k": grounds.top_k,
        "wanted": orjson.dumps({"tags": grounds.wanted.tags, "ids": grounds.wanted.ids}),
    }


def cached_question(entry: str, fields: Mapping[str, bytes]) -> CachedQuestion:
    """The reverse. Raises `KeyError` and `ValueError` for an entry that is being removed."""
    wanted = orjson.loads(fields["wanted"])
    return CachedQuestion(
        entry=entry,
        question=fields["question"].decode("utf-8", "replace"),
        tenant=fields["tenant"].decode("utf-8", "replace"),
        vector=fields.get("vector"),
        top_k=int(fields["top_k"]),
        wanted=DocumentFilter(tuple(wanted["tags"]), tuple(wanted["ids"])),
    )
