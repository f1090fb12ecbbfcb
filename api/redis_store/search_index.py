"""Defines the fields of a vector index, chooses between FLAT and HNSW, and maps the search module's errors.

FLAT compares with every entry: exact, and fast up to a few thousand. HNSW walks a graph: fast at any size, and nearly
exact if it considers enough candidates (`EF_RUNTIME`).

An index takes vectors of one type, so each type has its own field and its own indexes. An index over the same entries
leaves out the vectors of the other type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError, ResponseError

from api.redis_store.keys import CacheKeys
from api.values import EmbedderIdentity, Vector

Algorithm = Literal["flat", "hnsw"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("flat", "hnsw")
VectorType = Literal["float32", "float16"]
VECTOR_FIELDS: Final[dict[VectorType, str]] = {"float32": "vector", "float16": "vector16"}
"""The field of an entry that has its vector. An entry has one of them, or none."""
_NUMBERS: Final[dict[VectorType, str]] = {"float32": "<f4", "float16": "<f2"}

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


def encoded(vector: Vector, vector_type: VectorType) -> bytes | None:
    """Returns a vector as an index of this type takes it, or None if it has numbers that the type cannot have."""
    if vector_type == "float32":
        return vector
    with np.errstate(over="ignore"):  # found below
        numbers = np.frombuffer(vector, _NUMBERS["float32"]).astype(_NUMBERS[vector_type])
    return numbers.tobytes() if np.isfinite(numbers).all() else None


def decoded(fields: Mapping[str, bytes | None]) -> Vector | None:
    """Returns the vector of an entry, whatever its type. None if it has none."""
    for vector_type, name in VECTOR_FIELDS.items():
        if (stored := fields.get(name)) is not None:
            numbers = np.frombuffer(stored, _NUMBERS[vector_type])
            return stored if vector_type == "float32" else numbers.astype(_NUMBERS["float32"]).tobytes()
    return None


def cosines(asked: bytes, vectors: Sequence[bytes], vector_type: VectorType) -> NDArray[np.float32]:
    """Returns the cosine of each vector with `asked`. All are encoded with this type."""
    rows = np.frombuffer(b"".join((asked, *vectors)), _NUMBERS[vector_type]).reshape(len(vectors) + 1, -1)
    numbers = rows.astype(np.float32)
    unit = numbers / np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found: NDArray[np.float32] = unit[1:] @ unit[0]
    return found


def vector_type_of(index: str) -> VectorType:
    """The type of an index's vectors, by its name."""
    return "float16" if "-float16-" in index else "float32"


def index_schema(
    keys: CacheKeys, embedder: EmbedderIdentity, algorithm: Algorithm, vector_type: VectorType
) -> dict[str, Any]:
    """The index over all entries of one embedder, in redisvl's format."""
    vector = {"dims": embedder.dimension, "distance_metric": "cosine", "datatype": vector_type}
    return {
        "index": {
            "name": keys.index(embedder.fingerprint, algorithm, vector_type),
            "prefix": keys.embedded_by(embedder.fingerprint),
            "key_separator": "",
            "storage_type": "hash",
        },
        "fields": [
            {"name": "scope", "type": "tag"},
            {"name": "owner", "type": "tag"},
            {"name": "compared", "type": "tag"},
            {"name": "expires_ms", "type": "numeric"},
            {"name": VECTOR_FIELDS[vector_type], "type": "vector", "attrs": {**vector, **_ATTRIBUTES[algorithm]}},
        ],
    }


T = TypeVar("T")


async def load_redisvl() -> None:
    """Imports redisvl, which takes up to 0.25 s, without holding up requests. Only who creates an index needs it."""
    await asyncio.to_thread(import_module, "redisvl.index")


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
    from redisvl.exceptions import RedisSearchError

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
