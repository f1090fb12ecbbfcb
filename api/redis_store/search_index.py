"""Defines the fields of a vector index, chooses between FLAT and HNSW, and maps the search module's errors.

FLAT compares with every entry: exact, and fast up to a few thousand. HNSW walks a graph: fast at any size, and nearly
exact if it considers enough candidates (`EF_RUNTIME`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Final, Literal, TypeVar

from redis.exceptions import RedisError, ResponseError
from redisvl.exceptions import RedisSearchError

from api.redis_store.keys import CacheKeys
from api.values import EmbedderIdentity

Algorithm = Literal["flat", "hnsw"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("flat", "hnsw")

FLAT_UP_TO: Final = 5_000
"""Most entries of a FLAT index. A look-up then takes about as long as in a graph of any size."""
M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_RUNTIME: Final = 100
"""Candidates of a search in a graph that does not say how many it wants."""
EF_LOOKUP: Final = 50
"""Candidates of a look-up in a graph. More only find more of the entries that are too far away to answer."""
NEIGHBOURS: Final = 5
"""Entries to find for one question. A guard may reject the nearest one."""

_ATTRIBUTES: Final[dict[Algorithm, dict[str, Any]]] = {
    "flat": {"algorithm": "flat"},
    "hnsw": {"algorithm": "hnsw", "m": M, "ef_construction": EF_CONSTRUCTION, "ef_runtime": EF_RUNTIME},
}
BATCHES_FROM: Final = 0.1
"""The share of a graph from which walking it is faster than comparing with every wanted entry.
By itself the search module (2.10) also compares for far larger shares."""


def hybrid_policy(share: float | None) -> str:
    """Returns how to search a graph for such a share of it. If the share is unknown, the search module decides."""
    return " HYBRID_POLICY BATCHES" if share is not None and share >= BATCHES_FROM else ""


def algorithm_for(max_size: int) -> Algorithm:
    """The kind of index for a cache of up to `max_size` entries."""
    return "flat" if max_size <= FLAT_UP_TO else "hnsw"


def other_than(algorithm: Algorithm) -> Algorithm:
    """The kind that the index had before SEMANTIC_CACHE_MAX_SIZE was changed, if it was."""
    return "hnsw" if algorithm == "flat" else "flat"


def index_schema(keys: CacheKeys, embedder: EmbedderIdentity, algorithm: Algorithm) -> dict[str, Any]:
    """The index over all entries of one embedder, in redisvl's format."""
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


async def created(creating: Awaitable[Any]) -> bool:
    """Creates an index unless it exists: then False. Many workers may do so at once. Raises Redis's own errors."""
    try:
        await unwrapped(creating)
    except ResponseError as error:
        if "already exists" not in str(error).lower():
            raise
        return False
    return True


async def unwrapped(called: Awaitable[T]) -> T:
    """Raises the Redis error that redisvl wrapped, so that the health-gated client can recognize a lost Redis."""
    try:
        return await called
    except RedisSearchError as error:
        if isinstance(error.__cause__, RedisError):
            raise error.__cause__ from None
        raise ResponseError(str(error)) from error


def existing(reply: Mapping[bytes, Any]) -> list[Any]:
    """The results of a search, without those that have no key: deleted meanwhile, or cut off by the time limit."""
    return [one for one in reply[b"results"] if b"id" in one]


def says_missing(reply: Any) -> bool:
    """Returns whether a reply is the error for a missing index, in either wording of the search module."""
    text = str(reply).lower() if isinstance(reply, ResponseError) else ""
    return "unknown index" in text or "no such index" in text
