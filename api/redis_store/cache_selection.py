"""Which entries a deletion means: pure decisions on their keys and fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from api.model import Vector, model_key
from api.ports.sweep import Neighbourhood, Selection
from api.redis_store.cache_keys import CacheKeys

ROUNDING: Final = 1e-6
"""By how much the cosine of two equal vectors may miss 1."""

Fields = Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class EntryKey:
    """`rag:cache:<scope>:<digest>` in its parts."""

    key: str
    scope: str
    digest: str

    @classmethod
    def parsed(cls, keys: CacheKeys, key: str) -> EntryKey | None:
        """None where it is the key of something else."""
        rest = key.removeprefix(keys.entries)
        scope, colon, digest = rest.partition(":")
        return cls(key, scope, digest) if rest != key and colon and scope and digest and ":" not in digest else None


def pattern(keys: CacheKeys, selection: Selection) -> str:
    """What SCAN is to look for."""
    digest = "*" if selection.digest is None or selection.near else selection.digest
    return keys.entry("*", digest)


def tombstones(keys: CacheKeys, selection: Selection) -> list[str]:
    """The fields of `rag:invalidated` that keep answers under way from being stored."""
    if selection.entry is not None:
        key = EntryKey.parsed(keys, selection.entry)
        return [f"question:{key.digest}"] if key else []
    if selection.digest is not None:
        return [f"question:{selection.digest}"]
    if selection.source is not None:
        return [f"source:{selection.source}"]
    return ["all" if selection.tenant is None else f"tenant:{selection.tenant}"]


def wanted_fields(selection: Selection) -> list[str]:
    """The fields of an entry that the decision needs; the first is in every entry."""
    asked = {
        "tenant": selection.tenant,
        "model": selection.model,
        "sources": selection.source,
        "vector": selection.near,
    }
    return ["created_ms", *(name for name, value in asked.items() if value is not None)]


def chosen(keys: CacheKeys, selection: Selection, entries: Sequence[tuple[EntryKey, Fields]]) -> list[EntryKey]:
    """Those of `entries` that are meant."""
    plain = [(key, fields) for key, fields in entries if _is_meant(selection, fields)]
    if selection.digest is None:
        return [key for key, _ in plain]
    near = _near(keys, selection.near, plain) if selection.near else set()
    return [key for key, _ in plain if key.digest == selection.digest or key in near]


def _is_meant(selection: Selection, fields: Fields) -> bool:
    """By everything but the question."""
    return (
        fields["created_ms"] is not None
        and (selection.tenant is None or fields["tenant"] == selection.tenant.encode())
        and (selection.model is None or _same_model(selection.model, fields["model"] or b""))
        and (selection.source is None or _cites(fields["sources"] or b"", selection.source))
    )


def _same_model(asked: str, stored: bytes) -> bool:
    return model_key(asked) == model_key(stored.decode("utf-8", "replace"))


def _cites(sources: bytes, document: str) -> bool:
    """A string inside the JSON can not look like this: its quotes would be escaped."""
    return b'"document_id":' + orjson.dumps(document) in sources


def _near(keys: CacheKeys, near: Neighbourhood, entries: Sequence[tuple[EntryKey, Fields]]) -> set[EntryKey]:
    """Those whose question is as near as wanted. Vectors of other embedders do not compare."""
    prefix, size = keys.embedded_by(near.embedder.fingerprint), len(near.vector)
    comparable: dict[EntryKey, Vector] = {}
    for key, fields in entries:
        vector = fields["vector"]
        if vector is not None and len(vector) == size and key.key.startswith(prefix):
            comparable[key] = vector
    if not comparable:
        return set()
    matrix = np.frombuffer(b"".join(comparable.values()), dtype="<f4").reshape(len(comparable), -1)
    cosines = matrix @ np.frombuffer(near.vector, dtype="<f4")
    return {key for key, cosine in zip(comparable, cosines, strict=True) if cosine >= near.similarity - ROUNDING}
