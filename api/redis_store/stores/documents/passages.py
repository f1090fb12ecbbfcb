"""The search for passages in Redis: one index per embedder over its chunks, created when first needed.

Workers before schema 1.1 use another index over the same chunks. While Redis builds the new one, that one serves here
too, without stemmers. `RedisUnusedEmbeddings` drops it when none of those workers is left.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import methodcaller
from typing import Any, Final

from redis.asyncio import Redis
from redis.commands.search import AsyncSearch
from redis.commands.search.index_definition import IndexDefinition, IndexType
from redis.exceptions import ResponseError

from api.ports.document_store import Corpus, CurrentDocument, DocumentFilter, Hit, Rankings
from api.redis_store.encryption import CONTENT, HEADER, stored_range
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import replies_of
from api.redis_store.search_index import created, load_redisvl, says_missing
from api.redis_store.stores.cache.semantic_index import ScopeShares
from api.redis_store.stores.documents.document_records import STEMMERS, corpus_of, facts_of, named, owner_of
from api.redis_store.stores.documents.embeddings import RedisUnusedEmbeddings
from api.redis_store.stores.documents.passage_search import (
    STEMMER,
    best,
    by_meaning,
    by_term,
    by_words,
    counted,
    counting,
    is_cut_short,
    passage_schema,
    total,
)
from api.values import EmbedderIdentity, Vector

KNOWN_SECONDS: Final = 2.0
INCOMPLETE_SECONDS: Final = 0.02
"""A small index is built within milliseconds, and answers from documents are not stored before."""
BUILDING_SECONDS: Final = 1.0
_Commands = list[tuple[str, tuple[Any, ...]]]
"""Commands by what they find: `state`, `meaning`, `words`, `counted`, or a term."""
_FACTS: Final = ("tenant", "title", "source", "version", "revision")


class RedisPassageIndex:
    """Finds passages of documents. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.corpus_state)
        self._texts = redis.texts
        self._keys = keys
        self._embeddings = RedisUnusedEmbeddings(redis, keys)
        self._complete: dict[str, tuple[float, bool]] = {}
        self._earlier: set[str] = set()
        """Embedders whose index is still being built, while that of workers before schema 1.1 is complete."""
        self._shares = ScopeShares()
        self._chunks: dict[str, int] = {}
        self._creators: dict[str, AsyncSearch] = {}
        """By index. redis-py's object refers to itself many times, so only the garbage collector would free it."""
        self._redis.on_recovery(self._forget)

    async def ensure(self, embedder: EmbedderIdentity) -> None:
        """Creates the index for chunks of `embedder`, unless it exists. Several workers may call it at once.

        Waits until Redis has built it, but not for long: then an answer from the first document can be stored.
        """
        if await self._ensure(embedder):
            give_up = time.monotonic() + BUILDING_SECONDS
            while not await self.is_complete(embedder) and time.monotonic() < give_up:  # noqa: ASYNC110
                await asyncio.sleep(INCOMPLETE_SECONDS)  # Redis does not say when it is done
            self._complete.pop(embedder.fingerprint, None)  # the next search also counts the passages

    async def _ensure(self, embedder: EmbedderIdentity) -> bool:
        await self._embeddings.use(embedder)  # first, so that new chunks are not removed
        return await self._redis.run("index_create", lambda client: self._create(client, embedder))

    async def corpus(self, tenant: str) -> Corpus:
        """Returns the state of a tenant's documents: how many, the epoch, the last change (ms), the languages."""
        key = self._keys.corpus(owner_of(tenant))
        return corpus_of(await self._redis.run("corpus", methodcaller("hgetall", key)))

    async def search(
        self,
        embedder: EmbedderIdentity,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
        terms: Sequence[str] = (),
        languages: Sequence[str] = (),
    ) -> Rankings:
        """Searches by meaning, if there is a `vector`, and by words: up to `count` chunks each, best first.

        In the same round trip it counts the tenant's chunks with each of `terms`. `languages`: those of the
        tenant's `corpus`. Encrypted passages are found by meaning only, and no terms are counted.

        The result may contain chunks that are not in service. `complete` is False if the embedder has not embedded all
        documents or a search ended early. `other` is then the embedder that has embedded the most.
        """
        fingerprint, stemmers = embedder.fingerprint, [STEMMERS[one] for one in languages]
        if self._texts.encrypts:
            question, terms = "", ()
        asked = (tenant, wanted, question, vector, count, terms, stemmers)
        replies = await self._replies(self._searches(fingerprint, *asked))
        if any(says_missing(reply) for some in replies.values() for reply in some):
            # FLUSHALL deletes indexes too, and a new embedder has none yet.
            await self._ensure(embedder)
            self._complete.pop(fingerprint, None)
            self._earlier.discard(fingerprint)
            replies = await self._replies(self._searches(fingerprint, *asked))
        (state,) = replies.pop("state")
        self._note_share(tenant, *replies.pop("counted", []))
        meaning, words = replies.pop("meaning", []), replies.pop("words", [])
        behind, other = is_behind(named(state), fingerprint)
        # Searches for common words may always end early.
        refused = any(map(is_cut_short, meaning)) or any(isinstance(reply, ResponseError) for reply in words)
        rankings = counted(
            {term.removeprefix("="): reply for term, (reply,) in replies.items()}, fingerprint, self._texts
        )
        return replace(
            rankings,
            meaning=best(meaning, fingerprint, count, self._texts),
            words=best(words, fingerprint, count, self._texts),
            complete=not (behind or refused),
            other=other,
        )

    def _searches(
        self,
        embedder: str,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        vector: Vector | None,
        count: int,
        terms: Sequence[str],
        stemmers: Sequence[str],
    ) -> _Commands:
        """The commands to send. Now and then the tenant's chunks are counted too."""
        index, stemmers = self._index(embedder, stemmers)
        # Read the state first: a later commit sets a tag that prevents the answer from being stored.
        commands: _Commands = [("state", ("HGETALL", self._keys.corpus_state))]
        if vector is not None:
            share = self._shares.of(tenant, self._chunks.get(index, 0)) if wanted == DocumentFilter() else None
            commands.append(("meaning", by_meaning(index, tenant, wanted, vector, count, share)))
        commands += [("words", one) for one in by_words(index, tenant, wanted, question, count, stemmers=stemmers)]
        if self._shares.is_due(tenant):
            commands.append(("counted", counting(index, tenant)))
        found = {term: by_term(index, tenant, wanted, term) for term in terms}
        return [*commands, *((f"={term}", one) for term, one in found.items() if one is not None)]

    def _index(self, embedder: str, stemmers: Sequence[str]) -> tuple[str, Sequence[str]]:
        """The index to search, and those of the stemmers that it knows."""
        if embedder in self._earlier:
            return self._keys.chunk_index(embedder), ()
        return self._keys.passage_index(embedder), stemmers

    async def _replies(self, commands: _Commands) -> dict[str, list[Any]]:
        """The replies by what they find."""
        asked = [command for _, command in commands]
        found: dict[str, list[Any]] = defaultdict(list)
        replies = await self._redis.run("passages", lambda client: _execute(client, asked))
        for (name, _), reply in zip(commands, replies, strict=True):
            found[name].append(reply)
        return found

    def _note_share(self, tenant: str, counts: Any = None) -> None:
        if counts is not None and not isinstance(counts, ResponseError):
            self._shares.note(tenant, total(counts))

    async def search_words(
        self,
        embedder: str,
        tenant: str,
        wanted: DocumentFilter,
        question: str,
        count: int,
        misspelled: Sequence[str] = (),
        phrases: Sequence[str] = (),
        languages: Sequence[str] = (),
    ) -> Sequence[Hit]:
        """Searches the chunks of an embedder by words alone, see `by_words`. A missing index has no passages.

        An embedder that no worker uses any more may have the earlier index only. Encrypted passages cannot be found.
        """
        if self._texts.encrypts:
            return ()
        index, stemmers = self._index(embedder, [STEMMERS[one] for one in languages])
        replies: list[Any] = []
        for name, some in ((index, stemmers), (self._keys.chunk_index(embedder), ())):
            commands = by_words(name, tenant, wanted, question, count, misspelled, phrases, some)
            replies = await self._redis.run("passages", lambda client, asked=commands: _execute(client, asked))  # type: ignore[misc]
            if not any(map(says_missing, replies)):
                break
        return best(replies, embedder, count, self._texts)

    async def is_complete(self, embedder: EmbedderIdentity) -> bool:
        """Returns whether Redis has finished building the index. The answer is cached: yes for longer than no."""
        now, fingerprint = time.monotonic(), embedder.fingerprint
        known = self._complete.get(fingerprint)
        if known is not None and now < known[0]:
            return known[1]
        names = (self._keys.passage_index(fingerprint), self._keys.chunk_index(fingerprint))
        asked = [("FT.INFO", name) for name in names]
        infos: list[Any] = await self._redis.run("passages", lambda client: _execute(client, asked))
        built, built_before = map(_is_built, infos)
        if built_before and says_missing(infos[0]):  # this worker is the first of its release
            await self._ensure(embedder)
        (self._earlier.add if built_before and not built else self._earlier.discard)(fingerprint)
        for name, info in zip(names, infos, strict=True):
            self._chunks[name] = int(info[b"num_docs"]) if _is_built(info) else 0
        complete = built or built_before
        self._complete[fingerprint] = (now + (KNOWN_SECONDS if complete else INCOMPLETE_SECONDS), complete)
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
                for document, _, span in spans:
                    pipe.hget(self._keys.document(document), "revision")
                    for start, end in self._ranges(span):
                        pipe.getrange(self._keys.document_text(document), start, end - 1)
                replies: list[Any] = await pipe.execute()
                return replies

        replies, each = await self._redis.run("passages", read) if spans else [], 1 + len(self._ranges((0, 1)))
        of_spans = zip(spans, range(0, len(replies), each), strict=True)
        return [
            self._text(document, span, replies[at + 1 : at + each])
            if replies[at] is not None and int(replies[at]) == revision
            else None
            for (document, revision, span), at in of_spans
        ]

    def _ranges(self, span: tuple[int, int]) -> list[tuple[int, int]]:
        """What to read for a part of a text, which may be plain or encrypted."""
        return [span, (0, HEADER), stored_range(span)] if self._texts.keys else [span]

    def _text(self, document: str, span: tuple[int, int], read: Sequence[bytes]) -> str | None:
        """A part of a text, from what was read of these ranges. None if a worker without keys reads ciphertext.

        Raises `Undecryptable`.
        """
        text = read[0]
        if len(read) > 1 and read[1].startswith(CONTENT):
            text = self._texts.decrypt_part(self._keys.document_text(document), read[1], read[2], span)
        with suppress(UnicodeDecodeError):
            return text.decode()
        return None

    async def _forget(self) -> None:
        """A restarted Redis rebuilds its indexes."""
        self._complete.clear()

    async def _create(self, client: Redis, embedder: EmbedderIdentity) -> bool:
        await load_redisvl()
        schema = passage_schema(self._keys, embedder)
        prefix = f"{schema.index.prefix}"
        definition = IndexDefinition([prefix], index_type=IndexType.HASH, language_field=STEMMER)  # type: ignore[no-untyped-call]
        # A union that begins with a stop word crashes the search module (2.10).
        search = self._creators.get(schema.index.name)
        if search is None or search.client is not client:
            search = self._creators[schema.index.name] = client.ft(schema.index.name)
        return await created(search.create_index(schema.redis_fields, definition=definition, stopwords=[]))


def is_behind(state: Mapping[str, bytes], embedder: str) -> tuple[bool, str | None]:
    """If `embedder` has not embedded all documents, returns the other one that has embedded the most."""
    done = {name.removeprefix("done:"): int(at) for name, at in state.items() if name.startswith("done:")}
    own = done.pop(embedder, 0)
    if own >= int(state.get("epoch", 0)):
        return False, None
    return True, max(done, key=lambda name: done[name], default=None)


def _is_built(info: Any) -> bool:
    return not isinstance(info, Exception) and not int(info[b"indexing"])


async def _execute(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Runs the commands in one round trip. A refused command gives its error."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return await replies_of(pipe)
