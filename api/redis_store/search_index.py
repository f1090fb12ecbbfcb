"""What a vector index is made of, and which of two kinds: pure decisions.

FLAT compares with every entry: exact, and quick up to a few thousand. HNSW walks a graph: quick at any size, and nearly
exact where it looks at enough candidates (`EF_RUNTIME`).

What goes wrong with search indexes, in the words of the search module and of redisvl.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Literal, TypeVar

from redis.exceptions import RedisError, ResponseError
from redisvl.exceptions import RedisSearchError
from redisvl.index import AsyncSearchIndex

from api.redis_store.keys import CacheKeys
from api.values import EmbedderIdentity

Algorithm = Literal["flat", "hnsw"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("flat", "hnsw")

FLAT_UP_TO: Final = 5_000
"""Entries at most: a look-up in as many takes about as long as in a graph of any size."""
M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_RUNTIME: Final = 100
"""Candidates that a look-up in a graph keeps: 5 of the 5 nearest are found in at least 99 of 100."""
NEIGHBOURS: Final = 5
"""Entries looked at for one question: the nearest may be one that a guard objects to."""

_ATTRIBUTES: Final[dict[Algorithm, dict[str, Any]]] = {
    "flat": {"algorithm": "flat"},
    "hnsw": {"algorithm": "hnsw", "m": M, "ef_construction": EF_CONSTRUCTION, "ef_runtime": EF_RUNTIME},
}
BATCHES_FROM: Final = 0.1
"""The part of a graph from which walking it takes less time than comparing with all that is wanted.
Left to itself the search module (2.10) compares in far larger ones, too."""


def nearest_clause(algorithm: Algorithm, share: float | None = None) -> str:
    """The part of a query that asks for the nearest, in a scope that is such a `share` of the index."""
    if algorithm == "flat":
        return f"[KNN {NEIGHBOURS} @vector $v AS d]"
    return f"[KNN {NEIGHBOURS} @vector $v EF_RUNTIME {EF_RUNTIME}{hybrid_policy(share)} AS d]"


def hybrid_policy(share: float | None) -> str:
    """How a graph is searched for what is such a part of it: the search module's own choice where that is not known."""
    return " HYBRID_POLICY BATCHES" if share is not None and share >= BATCHES_FROM else ""


def algorithm_for(max_size: int) -> Algorithm:
    """The kind for a cache of at most so many entries."""
    return "flat" if max_size <= FLAT_UP_TO else "hnsw"


def other_than(algorithm: Algorithm) -> Algorithm:
    """The one that an index had before SEMANTIC_CACHE_MAX_SIZE was changed, if it was."""
    return "hnsw" if algorithm == "flat" else "flat"


def index_schema(keys: CacheKeys, embedder: EmbedderIdentity, algorithm: Algorithm) -> dict[str, Any]:
    """The index over all entries of one embedder, as redisvl wants it."""
    vector = {"dims": embedder.dimension, "distance_metric": "cosine", "datatype": "float32"}
    return {
        "index": {
            "name": keys.index(embedder.fingerprint, algorithm),
            "prefix": keys.embedded_by(embedder.fingerprint),
            "key_separator": "",
            "storage_type": "hash",
        },
        "fields": [
            {"name": "scope", "type": "tag"},
            {"name": "owner", "type": "tag"},
            {"name": "compared", "type": "tag"},
            {"name": "expires_ms", "type": "numeric"},
            {"name": "vector", "type": "vector", "attrs": {**vector, **_ATTRIBUTES[algorithm]}},
        ],
    }


T = TypeVar("T")


async def created(index: AsyncSearchIndex) -> None:
    """Makes it, unless it exists: many workers may do so at once. Raises Redis's own errors."""
    try:
        await unwrapped(index.create(overwrite=False))
    except ResponseError as error:
        if "already exists" not in str(error).lower():
            raise


async def unwrapped(called: Awaitable[T]) -> T:
    """redisvl wraps Redis's faults in its own: unwrapped again, so that the gate can tell a lost Redis."""
    try:
        return await called
    except RedisSearchError as error:
        if isinstance(error.__cause__, RedisError):
            raise error.__cause__ from None
        raise ResponseError(str(error)) from error


def says_missing(reply: Any) -> bool:
    """Whether a reply is the refusal of one who has no such index: the module words it in one way or the other."""
    text = str(reply).lower() if isinstance(reply, ResponseError) else ""
    return "unknown index" in text or "no such index" in text
