"""The fields of a cached answer's hash in Redis that have several forms: its vector, its texts, its documents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from api.ports.answer_cache import CachedQuestion, RetrievalSnapshot
from api.ports.document_store import DocumentFilter
from api.redis_store.encryption import VALUE, TextCipher
from api.redis_store.search_index import VECTOR_FIELDS, VectorType, decoded, encoded
from api.redis_store.stores.cache.semantic_index import FIELDS
from api.redis_store.stores.documents.document_records import owner_of
from api.values import Vector

EXACT: Final = "exact"
"""The entry cannot be compared, so any new document invalidates it."""
COMPARED: Final[dict[VectorType, str]] = {"float32": "meaning", "float16": f"{EXACT},float16"}
"""New documents are compared with the entry by the meaning of its question, in an index of its vector's type. In the
others, and for releases that know one type only, a vector of 16-bit numbers cannot be compared."""
NOT_COMPARED: Final[dict[VectorType, str]] = {"float32": f"@compared:{{{EXACT}}}", "float16": "-@compared:{float16}"}
"""The part of a query that finds the entries that an index of this type cannot compare."""
TEXTS: Final = ("question", "answer", "unread")
"""The fields of an entry that are encrypted. The answer then has its length before it and the sources after it."""
LENGTH: Final = 4
"""Bytes of this length."""
_PLACES: Final = tuple((FIELDS.index(name), name) for name in TEXTS)
_ANSWER, _SOURCES = FIELDS.index("answer"), FIELDS.index("sources")
ANSWER_DIGITS: Final = 16
"""Hex digits that identify an answer's text. The scripts have the same number."""
ANSWER_DIGEST: Final = "answer_digest"
"""The field of an encrypted entry that feedback finds its answer by."""
WANTED: Final = ("tenant", "question", "top_k", "wanted", *VECTOR_FIELDS.values())


def vector_fields(vector: Vector | None, vector_type: VectorType) -> dict[str, bytes]:
    """The field with the vector of an entry. Without it, the entry is found by the same question only."""
    stored = encoded(vector, vector_type) if vector is not None else None
    return {VECTOR_FIELDS[vector_type]: stored} if stored is not None else {}


def with_type(vector: Vector | None, fields: Mapping[str, Any], vector_type: VectorType) -> dict[str, Any]:
    """The fields that depend on the vector type, of an entry with these other fields."""
    stored = vector_fields(vector, vector_type)
    is_compared = fields.get("compared") == COMPARED["float32"]
    return {**stored, "compared": COMPARED[vector_type] if stored else EXACT} if is_compared else dict(stored)


def without_type(fields: dict[str, bytes]) -> Vector | None:
    """Undoes `with_type`: returns the vector and removes it from the fields, which become those of `float32`."""
    vector = decoded(fields)
    for name in VECTOR_FIELDS.values():
        fields.pop(name, None)
    if fields.get("compared") in {text.encode() for text in COMPARED.values()}:
        fields["compared"] = COMPARED["float32"].encode()
    return vector


def ground_fields(tenant: str, grounds: RetrievalSnapshot, compared: VectorType | None) -> dict[str, Any]:
    """The fields of an entry that depends on documents.

    `compared`: the type of its vector if that says all that it asks, else None.
    """
    return {
        "owner": owner_of(tenant),
        "compared": COMPARED[compared] if compared is not None and grounds.corpus.documents else EXACT,
        "epoch": grounds.corpus.epoch,
        "top_k": grounds.top_k,
        "wanted": orjson.dumps({"tags": grounds.wanted.tags, "ids": grounds.wanted.ids}),
    }


def encrypted_fields(texts: TextCipher, entry: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry as they are stored. Its sources keep only the documents: deletions find them there."""
    if not texts.encrypts:
        return dict(fields)
    answer, sources = fields["answer"], fields["sources"]
    text = answer.encode()
    cited = orjson.dumps([{"document_id": source["document_id"]} for source in orjson.loads(sources)])
    both = len(text).to_bytes(LENGTH, "big") + text + (sources.encode() if isinstance(sources, str) else sources)
    plain = {**fields, "answer": both}
    hidden: dict[str, Any] = {name: texts.encrypt(entry, name, plain[name]) for name in TEXTS if name in plain}
    return {**fields, **hidden, "sources": cited, ANSWER_DIGEST: answer_digest(answer)}


def decrypted_fields(texts: TextCipher, entry: str, fields: Mapping[str, bytes]) -> dict[str, bytes]:
    """The fields of an entry as they were before `encrypted_fields`. Raises `Undecryptable`."""
    plain = {name: texts.decrypt(entry, name, value) if name in TEXTS else value for name, value in fields.items()}
    if fields.get("answer", b"").startswith(VALUE):
        plain["answer"], plain["sources"] = _apart(plain["answer"])
    plain.pop(ANSWER_DIGEST, None)
    return plain


def decrypted_values(texts: TextCipher, entry: str, values: Sequence[Any]) -> list[Any]:
    """Does what `decrypted_fields` does, for the values of `FIELDS`."""
    plain = list(values)
    for place, name in _PLACES:
        if plain[place] is not None:
            plain[place] = texts.decrypt(entry, name, plain[place])
    if values[_ANSWER] is not None and values[_ANSWER].startswith(VALUE):
        plain[_ANSWER], plain[_SOURCES] = _apart(plain[_ANSWER])
    return plain


def _apart(both: bytes) -> tuple[bytes, bytes]:
    """The answer and its sources."""
    end = LENGTH + int.from_bytes(both[:LENGTH], "big")
    return both[LENGTH:end], both[end:]


def answer_digest(answer: str) -> str:
    """Identifies the text of an answer."""
    return hashlib.sha1(answer.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:ANSWER_DIGITS]


def cached_question(texts: TextCipher, entry: str, fields: Mapping[str, bytes]) -> CachedQuestion:
    """Parses these fields.

    Raises `KeyError` and `ValueError` for an entry that is being removed, and `Undecryptable`.
    """
    wanted = orjson.loads(fields["wanted"])
    return CachedQuestion(
        entry=entry,
        question=texts.decrypt(entry, "question", fields["question"]).decode("utf-8", "replace"),
        tenant=fields["tenant"].decode("utf-8", "replace"),
        vector=decoded(fields),
        top_k=int(fields["top_k"]),
        wanted=DocumentFilter(tuple(wanted["tags"]), tuple(wanted["ids"])),
    )
