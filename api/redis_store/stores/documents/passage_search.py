"""The index over passages, the search module's commands, and their replies.

Each passage is stemmed by the language of its document. A command has one language, so a search by words is one command
for each stemmer of the tenant's passages, over those passages only, and one for all other passages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from api.languages.function_words import BY_WORD
from api.ports.document_store import DocumentFilter, Hit, Rankings
from api.redis_store.encryption import TextCipher
from api.redis_store.keys import Keys
from api.redis_store.search_index import hybrid_policy
from api.redis_store.stores.documents.document_records import (
    SEALED,
    STEMMERS,
    owner_of,
    page_of,
    range_of,
    tag_key,
    texts_of,
)
from api.values import EmbedderIdentity, Vector

if TYPE_CHECKING:
    from redisvl.schema import IndexSchema

M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_RUNTIME: Final = 200
FIELDS: Final = (
    "document",
    "revision",
    "number",
    "text",
    "heading",
    "span",
    "reach",
    "start",
    "end",
    "page",
    "vector",
    SEALED,
)
WORDS: Final = 32
"""Most words of a question to search for."""
RARE: Final = 8
"""Most chunks with a rare term, including those that are not in service."""
STEMMER: Final = "stemmer"
"""The field with a chunk's stemmer. The search module uses the one for English without it."""
_WORD: Final = re.compile(r"\w{2,}")
_PARTS: Final = re.compile(r"\w+")
_HAN: Final = re.compile(r"[\u3400-\u9fff]{2,}")
COMMON: Final = frozenset(
    _WORD.findall(
        "an and are as at be but by for from how if in into is it its no not of on or our such that the their then "
        "there these they this to was we what when where which who will with you your"
    )
)
"""English words that say nothing about a topic. Searching for them costs the most."""
_FUNCTION_WORDS: Final = {
    stemmer: frozenset(word for word, codes in BY_WORD.items() if code in codes) for code, stemmer in STEMMERS.items()
}
"""Such words of other languages, by stemmer."""


def passage_schema(keys: Keys, embedder: EmbedderIdentity) -> IndexSchema:
    """The index over all chunks of one embedder. The field of the language is for who creates it to add."""
    from redisvl.schema import IndexSchema

    vector = {"dims": embedder.dimension, "distance_metric": "cosine", "datatype": "float32", "algorithm": "hnsw"}
    graph = {"m": M, "ef_construction": EF_CONSTRUCTION, "ef_runtime": EF_RUNTIME}
    index = {
        "name": keys.passage_index(embedder.fingerprint),
        "prefix": keys.chunk_prefix(embedder.fingerprint),
        "key_separator": "",
        "storage_type": "hash",
    }
    fields = [
        {"name": "owner", "type": "tag"},
        {"name": "document", "type": "tag"},
        {"name": "tags", "type": "tag"},
        {"name": STEMMER, "type": "tag"},
        {"name": "title", "type": "text", "attrs": {"weight": 2.0}},
        {"name": "heading", "type": "text", "attrs": {"weight": 1.5}},
        {"name": "text", "type": "text"},
        {"name": "vector", "type": "vector", "attrs": {**vector, **graph}},
    ]
    return IndexSchema.from_dict({"index": index, "fields": fields})


def by_meaning(
    index: str, tenant: str, wanted: DocumentFilter, vector: Vector, count: int, share: float | None = None
) -> tuple[Any, ...]:
    """The search for the chunks nearest to a vector. `share`: the share of all chunks that are wanted, if known."""
    knn = f"[KNN {count} @vector $v EF_RUNTIME {max(EF_RUNTIME, 2 * count)}{hybrid_policy(share)} AS d]"
    return (
        *("FT.SEARCH", index, f"({_filter(tenant, wanted)})=>{knn}", "PARAMS", 2, "v", vector, "SORTBY", "d"),
        *("LIMIT", 0, count, "DIALECT", 2, "RETURN", len(FIELDS) + 1, "d", *FIELDS),
    )


def by_words(
    index: str,
    tenant: str,
    wanted: DocumentFilter,
    question: str,
    count: int,
    misspelled: Sequence[str] = (),
    phrases: Sequence[str] = (),
    stemmers: Collection[str] = (),
) -> list[tuple[Any, ...]]:
    """The BM25 searches for chunks with any word of the question: for each of `stemmers`, and for all other chunks.

    `misspelled`: words to find in other spellings too, up to two letters away. `phrases`: what else to search for.
    """
    similar = [f"%%{word}%%" for word in misspelled if _WORD.fullmatch(word)]
    exact = [f'"{" ".join(parts)}"' for phrase in phrases if (parts := _PARTS.findall(phrase.lower()))]
    commands = []
    for stemmer in (*stemmers, ""):
        words = _words(question.lower(), stemmer)
        if not words:
            continue
        clauses = f"{_filter(tenant, wanted)}{_stemmed(stemmer, stemmers)}"
        # One clause per word: in a union inside an intersection, the search module (2.10) scores only the first match.
        query = "|".join(f"({clauses} @title|heading|text:({one}))" for one in [*words, *similar, *exact])
        language = ("LANGUAGE", stemmer) if stemmer else ()
        commands.append(
            (
                *("FT.SEARCH", index, query, "SCORER", "BM25STD", "WITHSCORES", "LIMIT", 0, count, "DIALECT", 2),
                *(*language, "RETURN", len(FIELDS), *FIELDS),
            )
        )
    return commands


def _words(folded: str, stemmer: str) -> list[str]:
    """The words of a question that tell something. Chinese has no spaces: each two characters may be a word."""
    if stemmer == STEMMERS["zh"]:
        folded = _HAN.sub(lambda run: f" {' '.join(map(''.join, zip(run[0], run[0][1:], strict=False)))} ", folded)
    ignored = _FUNCTION_WORDS.get(stemmer, COMMON)
    return [word for word in dict.fromkeys(_WORD.findall(folded)) if word not in ignored and word not in COMMON][:WORDS]


def _stemmed(stemmer: str, stemmers: Collection[str]) -> str:
    """The clause for the chunks of this stemmer; for those of no stemmer in `stemmers` if it is empty."""
    if stemmer:
        return f" {_one_of(STEMMER, [stemmer])}"
    return f" -{_one_of(STEMMER, sorted(stemmers))}" if stemmers else ""


def by_term(index: str, tenant: str, wanted: DocumentFilter, term: str) -> tuple[Any, ...] | None:
    """Counts the chunks with a term, such as `QZ-1108`, and fetches them if they are few. None for a term of signs.

    The index splits at signs, so a term of several parts is searched as a phrase. Whether a chunk has exactly these
    signs is for the caller to check.
    """
    parts = _PARTS.findall(term.lower())
    if not parts:
        return None
    query = f'{_filter(tenant, wanted)} @title|heading|text:("{" ".join(parts)}")'
    return (
        *("FT.SEARCH", index, query, "VERBATIM", "LIMIT", 0, RARE, "DIALECT", 2),
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


def is_cut_short(reply: Any) -> bool:
    """Returns whether Redis refused the search or ended it early."""
    return isinstance(reply, ResponseError) or bool(reply.get(b"warning"))


def counted(replies: Mapping[str, Any], embedder: str, texts: TextCipher) -> Rankings:
    """Returns the chunks with rare terms, the terms that are not rare, and those that no chunk has."""
    totals = {term: total(reply) for term, reply in replies.items()}
    rare = [hit for term, reply in replies.items() if totals[term] <= RARE for hit in hits(reply, embedder, texts)]
    frequent = frozenset(term for term, number in totals.items() if number > RARE)
    absent = frozenset(term for term, number in totals.items() if number == 0)
    return Rankings(rare=rare, frequent=frequent, absent=absent)


def total(reply: Any) -> int:
    """-1 if Redis refused the search."""
    return -1 if isinstance(reply, ResponseError) else int(reply[b"total_results"])


def best(replies: Sequence[Any], embedder: str, count: int, texts: TextCipher) -> list[Hit]:
    """The best of several searches by words. Their scores can be compared: one index has all the chunks."""
    return sorted((hit for reply in replies for hit in hits(reply, embedder, texts)), key=lambda hit: -hit.score)[
        :count
    ]


def hits(reply: Any, embedder: str, texts: TextCipher) -> Iterator[Hit]:
    """The chunks that a search found, best first. Raises `Undecryptable`."""
    if reply is None or isinstance(reply, ResponseError):
        return  # a refused search finds nothing; the other one may
    for found in reply[b"results"]:
        fields = {name.decode(): value for name, value in found[b"extra_attributes"].items()}
        score = 1.0 - float(fields["d"]) if "d" in fields else float(found.get(b"score", 0.0))
        with suppress(KeyError, ValueError):  # the chunk is being removed
            yield _hit(fields, score, embedder, texts_of(texts, found[b"id"].decode(), fields))


def _hit(fields: Mapping[str, bytes], score: float, embedder: str, texts: tuple[str, str]) -> Hit:
    heading, text = texts
    return Hit(
        document=fields["document"].decode(),
        revision=int(fields["revision"]),
        number=int(fields["number"]),
        score=score,
        text=text,
        heading=heading,
        vector=fields.get("vector"),
        span=range_of(fields["span"]),
        reach=range_of(fields["reach"]),
        embedder=embedder,
        characters=(int(fields["start"]), int(fields["end"])) if "start" in fields else None,
        page=page_of(fields),
    )
