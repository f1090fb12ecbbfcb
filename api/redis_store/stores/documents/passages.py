"""The search for passages in Redis: one index per embedder over its chunks, created when first needed."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import methodcaller
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redisvl.index import AsyncSearchIndex

from api.ports.document_store import Corpus, CurrentDocument, DocumentFilter, Hit, Rankings
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import replies_of
from api.redis_store.search_index import created, hybrid_policy, says_missing
from api.redis_store.stores.cache.semantic_index import ScopeShares
from api.redis_store.stores.documents.document_records import facts_of, named, owner_of, page_of, range_of, tag_key
from api.redis_store.stores.documents.embeddings import RedisUnusedEmbeddings
from api.values import EmbedderIdentity, Vector

M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_RUNTIME: Final = 200
FIELDS: Final = ("document", "revision", "number", "text", "heading", "span", "reach", "start", "end", "page", "vector")
WORDS: Final = 32
"""Most words of a question to search for."""
RARE: Final = 8
"""Most chunks with a rare term, including those that are not in service."""
_WORD: Final = re.compile(r"\w{2,}")
_PARTS: Final = re.compile(r"\w+")
COMMON: Final = frozenset(
    _WORD.findall(
        "an and are as at be but by for from how if in into is it its no not of on or our such that the their then "
        "there these they this to was we what when where which who will with you your"
    )
)
"""English words that say nothing about a topic. Searching for them costs the most."""


def passage_schema(keys: Keys, embedder: EmbedderIdentity) -> dict[str, Any]:
    """The index over all chunks of one embedder, in redisvl's format."""
    vector = {"dims": embedder.dimension, "distance_metric": "cosine", "datatype": "float32", "algorithm": "hnsw"}
    graph = {"m": M, "ef_construction": EF_CONSTRUCTION, "ef_runtime": EF_RUNTIME}
    return {
        "index": {
            "name": keys.chunk_index(embedder.fingerprint),
            "prefix": keys.chunk_prefix(embedder.fingerprint),
            "key_separator": "",
            "storage_type": "hash",
            "stopwords": [],  # a union that begins with a stop word crashes the search module (2.10)
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
) -> tuple[Any, ...] | None:
    """The BM25 search for chunks with any word of the question; None if it has no word to search for.

    `misspelled`: words to find in other spellings too, up to two letters away. `phrases`: what else to search for.
    """
    words = [word for word in dict.fromkeys(_WORD.findall(question.lower())) if word not in COMMON][:WORDS]
    if not words:
        return None
    clauses = _filter(tenant, wanted)
    # One clause per word: in a union inside an intersection, the search module (2.10) scores only the first match.
    similar = [f"%%{word}%%" for word in misspelled if _WORD.fullmatch(word)]
    exact = [f'"{" ".join(parts)}"' for phrase in phrases if (parts := _PARTS.findall(phrase.lower()))]
    query = "|".join(f"({clauses} @title|heading|text:({one}))" for one in [*words, *similar, *exact])
    return (
        *("FT.SEARCH", index, query, "SCORER", "BM25STD", "WITHSCORES", "LIMIT", 0, count, "DIALECT", 2),
        *("RETURN", len(FIELDS), *FIELDS),
    )


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


KNOWN_SECONDS: Final = 2.0
_CORPUS: Final = ("documents", "epoch", "changed_ms")
_FACTS: Final = ("tenant", "title", "source", "version", "revision")


class RedisPassageIndex:
    """Finds passages of documents. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._keys = keys
        self._embeddings = RedisUnusedEmbeddings(redis, keys)
        self._complete: dict[str, tuple[float, bool]] = {}
        self._shares = ScopeShares()
        self._chunks: dict[str, int] = {}
        self._redis.on_recovery(self._forget)

    async def ensure(self, embedder: EmbedderIdentity) -> None:
        """Creates the index for chunks of `embedder`, unless it exists. Several workers may call it at once."""
        await self._embeddings.use(embedder)  # first, so that new chunks are not removed
        await self._redis.run("index_create", lambda client: self._create(client, embedder))

    async def corpus(self, tenant: str) -> Corpus:
        """Returns the state of a tenant's documents: how many, the epoch, the last change (ms)."""
        key = self._keys.corpus(owner_of(tenant))
        found: Any = await self._redis.run("corpus", methodcaller("hmget", key, *_CORPUS))
        return Corpus(*(int(value or 0) for value in found))

    async def search(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
        terms: Sequence[str] = (),
    ) -> Rankings:
        """Searches by meaning, if there is a `vector`, and by words: up to `count` chunks each, best first.

        In the same round trip it counts the tenant's chunks with each of `terms`.

        The result may contain chunks that are not in service. `complete` is False if the embedder has not embedded all
        documents or a search ended early. `other` is then the embedder that has embedded the most.
        """
        commands = self._searches(embedder, tenant, wanted, question, vector, count)
        index = self._keys.chunk_index(embedder.fingerprint)
        counts = {term: one for term in terms if (one := by_term(index, tenant, wanted, term)) is not None}
        # Read the state first: a later commit sets a tag that prevents the answer from being stored.
        first = ("HGETALL", self._keys.corpus_state)
        asking = [first, *commands.values(), *counts.values()]
        state, *replies = await self._redis.run("passages", lambda client: _execute(client, asking))
        if any(says_missing(reply) for reply in replies):
            # FLUSHALL deletes indexes too, and a new embedder has none yet.
            await self.ensure(embedder)
            self._complete.pop(embedder.fingerprint, None)
            state, *replies = await self._redis.run("passages", lambda client: _execute(client, asking))
        answered = dict(zip(commands, replies, strict=False))
        self._note_share(tenant, answered.pop("counted", None))
        meaning, words = (_hits(answered.get(name), embedder.fingerprint) for name in ("meaning", "words"))
        terms_found = _counted(dict(zip(counts, replies[len(commands) :], strict=True)), embedder.fingerprint)
        behind, other = is_behind(named(state), embedder.fingerprint)
        complete = not behind and not any(map(_is_cut_short, commands, replies))
        return replace(terms_found, meaning=meaning, words=words, complete=complete, other=other)

    def _searches(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
    ) -> dict[str, tuple[Any, ...]]:
        """The commands to send, by name. Now and then the tenant's chunks are counted too."""
        index = self._keys.chunk_index(embedder.fingerprint)
        share = self._shares.of(tenant, self._chunks.get(index, 0)) if wanted == DocumentFilter() else None
        asked = {
            "meaning": by_meaning(index, tenant, wanted, vector, count, share) if vector is not None else None,
            "words": by_words(index, tenant, wanted, question, count),
            "counted": counting(index, tenant) if self._shares.is_due(tenant) else None,
        }
        return {name: command for name, command in asked.items() if command is not None}

    def _note_share(self, tenant: str, counted: Any) -> None:
        if counted is not None and not isinstance(counted, ResponseError):
            self._shares.note(tenant, _total(counted))

    async def search_words(
        self,
        embedder: str,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        count: int,
        misspelled: Sequence[str] = (),
        phrases: Sequence[str] = (),
    ) -> Sequence[Hit]:
        """Searches the chunks of an embedder by words alone, see `by_words`. A missing index has no passages."""
        index = self._keys.chunk_index(embedder)
        words = by_words(index, tenant, wanted, question, count, misspelled, phrases)
        replies = await self._redis.run("passages", lambda client: _execute(client, [words] if words else []))
        return [hit for reply in replies for hit in _hits(reply, embedder)]

    async def is_complete(self, embedder: EmbedderIdentity) -> bool:
        """Returns whether Redis has finished building the index. The answer is cached for `KNOWN_SECONDS`."""
        now = time.monotonic()
        known = self._complete.get(embedder.fingerprint)
        if known is not None and now < known[0]:
            return known[1]
        index = self._keys.chunk_index(embedder.fingerprint)
        (info,) = await self._redis.run("passages", lambda client: _execute(client, [("FT.INFO", index)]))
        complete = not isinstance(info, Exception) and not int(info[b"indexing"])
        self._chunks[index] = int(info[b"num_docs"]) if complete else 0
        self._complete[embedder.fingerprint] = (now + KNOWN_SECONDS, complete)
        return complete

    async def current(self, documents: Sequence[str], embedder: str) -> Mapping[str, CurrentDocument]:
        """Returns the facts and revision of documents whose current revision the embedder has embedded."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for document in documents:
                    pipe.hmget(self._keys.document(document), *_FACTS, f"embedded:{embedder}")
                replies: list[Any] = await pipe.execute()
                return replies

        replies = await self._redis.run("passages", read) if documents else []
        found: dict[str, CurrentDocument] = {}
        for document, (*values, embedded) in zip(documents, replies, strict=True):
            fields = {name: value for name, value in zip(_FACTS, values, strict=True) if value is not None}
            if embedded is not None and embedded == fields.get("revision"):
                found[document] = CurrentDocument(facts_of(fields), int(embedded))
        return found

    async def texts(self, spans: Sequence[tuple[str, int, tuple[int, int]]]) -> Sequence[str | None]:
        """Returns a part of the text of each document: bytes from and to. None if another revision is in service."""

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=True) as pipe:
                for document, _, (start, end) in spans:
                    pipe.hget(self._keys.document(document), "revision")
                    pipe.getrange(self._keys.document_text(document), start, end - 1)
                replies: list[Any] = await pipe.execute()
                return replies

        replies = await self._redis.run("passages", read) if spans else []
        pairs = zip(spans, replies[::2], replies[1::2], strict=True)
        return [
            text.decode("utf-8", "replace") if at is not None and int(at) == revision else None
            for (_, revision, _), at, text in pairs
        ]

    async def _forget(self) -> None:
        """A restarted Redis rebuilds its indexes."""
        self._complete.clear()

    async def _create(self, client: Redis, embedder: EmbedderIdentity) -> None:
        await created(AsyncSearchIndex.from_dict(passage_schema(self._keys, embedder), redis_client=client))


def is_behind(state: Mapping[str, bytes], embedder: str) -> tuple[bool, str | None]:
    """If `embedder` has not embedded all documents, returns the other one that has embedded the most."""
    done = {name.removeprefix("done:"): int(at) for name, at in state.items() if name.startswith("done:")}
    own = done.pop(embedder, 0)
    if own >= int(state.get("epoch", 0)):
        return False, None
    return True, max(done, key=lambda name: done[name], default=None)


async def _execute(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Runs the commands in one round trip. A refused command gives its error."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return await replies_of(pipe)


def _is_cut_short(ranking: str, reply: Any) -> bool:
    """Returns whether Redis refused the search or ended it early. Searches for common words may always end early."""
    return isinstance(reply, ResponseError) or (ranking == "meaning" and bool(reply.get(b"warning")))


def _counted(replies: Mapping[str, Any], embedder: str) -> Rankings:
    """Returns the chunks with rare terms, the terms that are not rare, and those that no chunk has."""
    totals = {term: _total(reply) for term, reply in replies.items()}
    rare = [hit for term, reply in replies.items() if totals[term] <= RARE for hit in _hits(reply, embedder)]
    frequent = frozenset(term for term, total in totals.items() if total > RARE)
    absent = frozenset(term for term, total in totals.items() if total == 0)
    return Rankings(rare=rare, frequent=frequent, absent=absent)


def _total(reply: Any) -> int:
    """-1 if Redis refused the search."""
    return -1 if isinstance(reply, ResponseError) else int(reply[b"total_results"])


def _hits(reply: Any, embedder: str) -> list[Hit]:
    if reply is None or isinstance(reply, ResponseError):
        return []  # a refused search finds nothing; the other one may
    hits = []
    for found in reply[b"results"]:
        fields = {name.decode(): value for name, value in found[b"extra_attributes"].items()}
        score = 1.0 - float(fields["d"]) if "d" in fields else float(found.get(b"score", 0.0))
        with suppress(KeyError, ValueError):  # the chunk is being removed
            hits.append(_hit(fields, score, embedder))
    return hits


def _hit(fields: Mapping[str, bytes], score: float, embedder: str) -> Hit:
    return Hit(
        document=fields["document"].decode(),
        revision=int(fields["revision"]),
        number=int(fields["number"]),
        score=score,
        text=fields["text"].decode("utf-8", "replace"),
        heading=fields["heading"].decode(),
        vector=fields.get("vector"),
        span=range_of(fields["span"]),
        reach=range_of(fields["reach"]),
        embedder=embedder,
        characters=(int(fields["start"]), int(fields["end"])) if "start" in fields else None,
        page=page_of(fields),
    )
