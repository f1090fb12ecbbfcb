"""What the index over chunks is made of, and how it is asked: pure decisions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from api.model import EmbedderIdentity, Vector
from api.ports.passages import DocumentFilter
from api.redis_store.document_fields import owner_of, tag_key
from api.redis_store.index_schema import hybrid_policy
from api.redis_store.keys import Keys

M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_RUNTIME: Final = 200
FIELDS: Final = ("document", "revision", "number", "text", "heading", "span", "reach", "vector")
WORDS: Final = 32
"""Words of a question that are looked for."""
_WORD: Final = re.compile(r"\w{2,}")
COMMON: Final = frozenset(
    _WORD.findall(
        "an and are as at be but by for from how if in into is it its no not of on or our such that the their then "
        "there these they this to was we what when where which who will with you your"
    )
)
"""English words that say nothing about what a passage is about; looking for them costs most."""


def passage_schema(keys: Keys, embedder: EmbedderIdentity) -> dict[str, Any]:
    """The index over all chunks of one embedder, as redisvl wants it."""
    vector = {"dims": embedder.dimension, "distance_metric": "cosine", "datatype": "float32", "algorithm": "hnsw"}
    graph = {"m": M, "ef_construction": EF_CONSTRUCTION, "ef_runtime": EF_RUNTIME}
    return {
        "index": {
            "name": keys.chunk_index(embedder.fingerprint),
            "prefix": keys.chunk_prefix(embedder.fingerprint),
            "key_separator": "",
            "storage_type": "hash",
            "stopwords": [],  # with any, a union that begins with one crashes the search module of Redis (2.10)
        },
        "fields": [
            {"name": "owner", "type": "tag"},
            {"name": "document", "type": "tag"},
            {"name": "tags", "type": "tag"},
            {"name": "title", "type": "text", "attrs": {"weight": 2.0}},
            {"name": "heading", "type": "text", "attrs": {"weight": 1.5}},
            {"name": "text", "type": "text"},
            {"name": "vector", "type": "vector", "attrs": {**vector, **graph}},
        ],
    }


def by_meaning(
    index: str, tenant: str, wanted: DocumentFilter, vector: Vector, count: int, share: float | None = None
) -> tuple[Any, ...]:
    """The search for the chunks nearest to a vector; `share`: the part that the wanted ones are of all, if known."""
    knn = f"[KNN {count} @vector $v EF_RUNTIME {max(EF_RUNTIME, 2 * count)}{hybrid_policy(share)} AS d]"
    return (
        *("FT.SEARCH", index, f"({_filter(tenant, wanted)})=>{knn}", "PARAMS", 2, "v", vector, "SORTBY", "d"),
        *("LIMIT", 0, count, "DIALECT", 2, "RETURN", len(FIELDS) + 1, "d", *FIELDS),
    )


def by_words(index: str, tenant: str, wanted: DocumentFilter, question: str, count: int) -> tuple[Any, ...] | None:
    """The search by BM25 for chunks with any of the question's words; None where it has none to look for."""
    words = [word for word in dict.fromkeys(_WORD.findall(question.casefold())) if word not in COMMON][:WORDS]
    if not words:
        return None
    clauses = _filter(tenant, wanted)
    # One clause for each: of a union in an intersection the search module (2.10) counts the first word that is found.
    query = "|".join(f"({clauses} @title|heading|text:{word})" for word in words)
    return (
        *("FT.SEARCH", index, query, "SCORER", "BM25STD", "WITHSCORES", "LIMIT", 0, count, "DIALECT", 2),
        *("RETURN", len(FIELDS), *FIELDS),
    )


def counting(index: str, tenant: str) -> tuple[Any, ...]:
    """Counts a tenant's chunks."""
    return ("FT.SEARCH", index, _filter(tenant, DocumentFilter()), "LIMIT", 0, 0, "DIALECT", 2)


def _filter(tenant: str, wanted: DocumentFilter) -> str:
    clauses = [_one_of("owner", [owner_of(tenant)])]
    if wanted.tags:
        clauses.append(_one_of("tags", [tag_key(tag) for tag in wanted.tags]))
    if wanted.ids:
        clauses.append(_one_of("document", [one for one in wanted.ids if one.isalnum()] or ["none"]))
    return " ".join(clauses)


def _one_of(field: str, values: Sequence[str]) -> str:
    return f"@{field}:{{{'|'.join(values)}}}"
