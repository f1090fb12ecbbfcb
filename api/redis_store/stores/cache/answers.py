"""The fleet's cached answers in Redis: one hash per answer, found by its digest or through the vector index."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from api.errors import DocumentsChanged, StoreUnavailable, Undecryptable
from api.ports.answer_cache import (
    Claim,
    ExactLookup,
    NearestSearch,
    NewAnswer,
)
from api.ports.limits import Charge
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import script
from api.redis_store.search_index import NEIGHBOURS, VectorType
from api.redis_store.stores.cache.entries import decrypted_values, encrypted_fields, ground_fields, vector_fields
from api.redis_store.stores.cache.joint_reads import JointReads, run_along
from api.redis_store.stores.cache.near import NearCache
from api.redis_store.stores.cache.semantic_index import FIELDS, Nearest, SemanticIndex, SemanticIndexes, nearest_of
from api.redis_store.stores.cache.sweep import RUNNING, TAGS_LIFETIME_MS
from api.redis_store.stores.documents.document_records import corpus_of, owner_of
from api.redis_store.stores.fleet import CacheCounters
from api.redis_store.stores.limits import RedisLimits, decide
from api.values import ERASED, CachedAnswer, CacheMatch, EmbedderIdentity, Usage, Vector, source_of

DIGEST, GROUP_DIGITS = 32, 8
"""Hex digits of the digest that ends an entry's key, and how many of them name its answer group. The scripts have the
same numbers."""
MOST_AGAIN, LONGEST_AGAIN = 128, 16 * 1024
"""Entries that are kept decoded for repeats, and bytes of each."""


class RedisAnswerCache:
    """The semantic cache of the whole fleet. Every method but `used` raises `StoreUnavailable`.

    A look-up and a store use one partition, that of the scope. An answer is fresh for `ttl_ms` and kept stale for
    `stale_ms` more. `max_size` is the limit of a partition. The tenant with the most entries loses one first if it has
    more than `tenant_share` of `max_size`. Each entry names the `release`. `on_evicted` is called with the number of
    entries that a new one has evicted. `near` has this worker's copies, if it may have any. `patience`: seconds that a
    repeat waits for Redis.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        keys: Keys,
        indexes: SemanticIndexes,
        counters: CacheCounters,
        *,
        ttl_ms: int,
        stale_ms: int,
        max_size: int,
        tenant_share: float = 1.0,
        release: str = "",
        patience: float = 1.0,
        on_evicted: Callable[[int], None] = lambda count: None,
        near: NearCache | None = None,
        limits: RedisLimits | None = None,
    ) -> None:
        self._charges = limits
        self._redis = redis
        self._texts = redis.texts
        self._keys = keys
        self._indexes = indexes
        self._counters = counters
        self._release = release
        self._on_evicted = on_evicted
        self._near = near
        self._limits = (ttl_ms, stale_ms, max_size, round(tenant_share * max_size))
        self._clock = (0, 0.0)
        """Redis's clock as last read (ms), and when that was by this worker's (s)."""
        self._patience = patience
        self._reads: dict[CacheKeys, JointReads] = {}
        self._decoded_before: dict[str, tuple[list[bytes | None], CachedAnswer]] = {}
        self._reread = script(redis.client, "stores/cache/answers", "reread")
        self._find = script(redis.client, "stores/cache/answers", "find")
        self._store = script(redis.client, "stores/cache/answers", "store")
        self._join = script(redis.client, "stores/cache/answers", "join")

    def entry(self, scope: str, digest: str) -> str:
        """The key of the entry of exactly this question."""
        return self._keys.partition(scope).entry(scope, digest)

    def find_near(self, entry: str) -> CacheMatch | None:
        """The fresh entry with this key, if this worker has a copy that is certainly current. No I/O."""
        return self._near.find(entry) if self._near is not None else None

    async def reread(
        self, scope: str, entries: Sequence[str], charge: Charge | None = None
    ) -> tuple[int, list[CachedAnswer | None]]:
        """Redis's clock, and entries that were found before, fresh or not. All are in the partition of `scope`.

        `charge`: one to send along. It gets its decision.
        """
        part = self._keys.partition(scope)
        if not self._indexes.by_partition[part].supported:
            raise StoreUnavailable("Redis has no search module")
        if (reads := self._reads.get(part)) is None:
            redis = self._redis.of(entries[0])
            reads = self._reads[part] = JointReads(redis, self._reread, self._patience)
        read_at = self._near.copies.changes if self._near is not None else 0
        charging = self._charging(charge) if charge is not None else None
        now_ms, found, charged = await reads.of(entries, charging)
        if charge is not None and charging is not None:
            _settle(charge, charged)
        answers = [self._decoded_again(entry, values) for entry, values in zip(entries, found, strict=True)]
        if self._near is not None:
            for entry, answer in zip(entries, answers, strict=True):
                if answer is not None:
                    self._near.keep(entry, answer, read_at)
        return now_ms, answers

    def _decoded_again(self, entry: str, values: list[bytes | None]) -> CachedAnswer | None:
        """Decodes an entry, unless its values are those of the last time."""
        if values[0] is None:
            return None
        before = self._decoded_before.get(entry)
        if before is not None and before[0] == values:
            return before[1]
        answer = self._decoded(entry, values)
        if answer is not None and len(b"".join(filter(None, values))) <= LONGEST_AGAIN:
            self._decoded_before.pop(entry, None)
            self._decoded_before[entry] = values, answer
            if len(self._decoded_before) > MOST_AGAIN:
                del self._decoded_before[next(iter(self._decoded_before))]
        return answer

    async def find_exact(
        self,
        scope: str,
        digest: str,
        tenant: str = "",
        *,
        documents: bool = False,
        search: NearestSearch | None = None,
        charge: Charge | None = None,
    ) -> ExactLookup:
        """The entry of exactly this question, fresh or not, with Redis's clock: one round trip.

        `documents`: without an entry, read the state of the tenant's documents too. A cluster has it elsewhere.
        `search`: one to send along, whether there is an entry or not. `charge`: the same; it gets its decision.
        """
        part = self._keys.partition(scope)
        index = self._indexes.by_partition[part]
        if not index.supported:
            raise StoreUnavailable("Redis has no search module")
        arguments: list[str | int] = [6, *_tags(digest, tenant), f"corpus:{tenant}", *FIELDS]
        key = part.entry(scope, digest)
        keys = [key, part.invalidated]
        if documents and not self._keys.cluster:
            keys.append(self._keys.corpus(owner_of(tenant)))
        redis = self._redis.of(key)
        read_at = self._near.copies.changes if self._near is not None else 0
        also = self._sent_along(index, scope, search) if search is not None else None
        charging = self._charging(charge) if charge is not None else None
        nearest = None
        if also is None and charging is None:
            reply = await redis.run("exact_lookup", partial(self._find, keys, arguments))
        else:
            along = [charging, also]  # the search last: it takes longest
            reply, charged, nearest = await redis.run(
                "exact_lookup", partial(run_along, self._find, keys, arguments, along)
            )
            if charge is not None and charging is not None:
                _settle(charge, charged)
        now_ms, invalidated_ms, values = int(reply[0]), int(reply[1]), reply[2:]
        self._clock = now_ms, time.monotonic()
        if values[0] is None:
            corpus = corpus_of(values[1:]) if len(keys) > 2 else None
            similar = self._matches(nearest, now_ms, search.stale_ms) if search is not None and nearest else None
            return ExactLookup(None, now_ms, invalidated_ms, corpus, similar)
        answer = self._decoded(key, values)
        match = CacheMatch(answer, "exact", 1.0, now_ms) if answer is not None else None
        if answer is not None and self._near is not None:
            self._near.keep(key, answer, read_at)
        return ExactLookup(match, now_ms, invalidated_ms)

    def _sent_along(self, index: SemanticIndex, scope: str, search: NearestSearch) -> tuple[Any, ...] | None:
        """The command of a search that cannot wait for Redis's clock.

        It takes the earliest time that the clock can show, so it may find what has just expired. `_matches` drops that.
        """
        redis_ms, at = self._clock
        now_ms = redis_ms + int((time.monotonic() - at) * 1000)
        return index.search(search.embedder, scope, search.vector, now_ms - search.stale_ms, search.neighbours)

    def _charging(self, charge: Charge) -> tuple[Any, ...] | None:
        """The command that charges a request; None if it was charged before, or is charged by its own round trip."""
        if charge.is_sent or self._charges is None:
            return None
        command = self._charges.command(charge)
        charge.is_sent = command is not None  # if the reply is lost, it may have been charged
        charge.asked_at = time.monotonic()
        return command

    def _matches(self, reply: Mapping[bytes, Any], now_ms: int, stale_ms: int) -> Sequence[CacheMatch]:
        """The entries that a search has found, without those that expired before the look-up."""
        return [
            match for match in self._semantic(nearest_of(reply), now_ms) if match.answer.expires_ms > now_ms - stale_ms
        ]

    async def find_similar(
        self,
        embedder: EmbedderIdentity,
        scope: str,
        vector: Vector,
        now_ms: int,
        *,
        stale_ms: int = 0,
        neighbours: int = NEIGHBOURS,
    ) -> Sequence[CacheMatch]:
        """The nearest entries of the scope, nearest first, whatever their similarity: one round trip.

        `stale_ms`: how long after its lifetime an entry is still found.
        """
        found = await self._indexes.by_partition[self._keys.partition(scope)].nearest(
            embedder, scope, vector, now_ms - stale_ms, neighbours
        )
        return self._semantic(found, now_ms)

    def _semantic(self, found: Sequence[Nearest], now_ms: int) -> list[CacheMatch]:
        answers = [(self._decoded(one.key, one.values), one.similarity) for one in found]
        return [CacheMatch(answer, "semantic", near, now_ms) for answer, near in answers if answer is not None]

    async def store(
        self, scope: str, digest: str, vector: Vector | None, answer: NewAnswer, *, claim: Claim | None = None
    ) -> CachedAnswer | None:
        """Stores an answer with an absolute lifetime. Replaces one of the same digest.

        None if the answer was invalidated since it was asked for, or if another worker has taken over `claim`. Ends the
        claim in the same step, unless other workers follow its flight. Raises `DocumentsChanged` if only the documents
        changed: the caller checks whether the answer would be the same.
        """
        part = self._keys.partition(scope)
        key, grounds = part.entry(scope, digest), answer.grounds
        plain = _fields(scope, vector, self._indexes.vector_type, answer, self._release)
        fields = encrypted_fields(self._texts, key, plain)
        cited = dict.fromkeys(source.document_id for source in answer.sources)
        tags = [*_tags(digest, answer.tenant), *(f"source:{document}" for document in cited)]
        pairs = (part for pair in fields.items() for part in pair)
        fence, flight = (claim.fence, [claim.key]) if claim is not None else ("", [])
        tokens = answer.usage.completion_tokens
        looked: list[Any] = [f"corpus:{answer.tenant}", grounds.at_ms] if grounds is not None else ["", 0]
        asked: list[Any] = [*self._limits, answer.tenant, fence, answer.asked_ms, tokens, *looked, TAGS_LIFETIME_MS]
        arguments = [*asked, len(tags), *tags, *pairs]
        keys = [key, part.invalidated, *part.eviction_keys, *flight]
        if claim is not None:
            claim.ended = None
        reply = await self._redis.of(key).run("store", partial(self._store, keys, arguments))
        is_stored = bool(reply) and reply[0] != b"changed"
        if claim is not None:
            claim.ended = is_stored and bool(reply[3])
        if not reply:
            return None
        if not is_stored:
            raise DocumentsChanged(int(reply[1]))
        created, expires, evicted, _ = reply
        self._counters.add("stores")
        if evicted:
            self._counters.add("evictions", evicted)
            self._on_evicted(evicted)
        return CachedAnswer(
            key,
            answer.question,
            answer.answer,
            answer.model,
            answer.sources,
            answer.usage,
            int(created),
            int(expires),
            answer.unread if vector is not None else None,
            own_group(key, int(created)),
        )

    async def join(self, answers: Sequence[CachedAnswer]) -> str:
        """Makes entries of one scope an answer group, and returns its name: the oldest of their groups.

        Leaves out entries that have been replaced or deleted since they were read.
        """
        keys = [answer.entry for answer in answers]
        created = [answer.created_ms for answer in answers]
        reply: Any = await self._redis.of(keys[0]).run("join_group", partial(self._join, keys, created))
        return str(reply.decode())

    def used(self, match: CacheMatch) -> None:
        """Counts a use of an entry, so that it is evicted later. No I/O."""
        self._counters.touch(match.answer.entry)

    def _decoded(self, key: str, values: Sequence[Any]) -> CachedAnswer | None:
        """Counts an unreadable entry and skips it. It stays: a later release may read it."""
        try:
            return _decode(key, decrypted_values(self._texts, key, values) if self._texts.keys else values)
        except (ValueError, TypeError, KeyError, Undecryptable):
            self._counters.add("corrupt")
            if not self._texts.keys:  # count it as undecryptable too, if it is encrypted
                with suppress(ValueError, TypeError, KeyError, Undecryptable):
                    decrypted_values(self._texts, key, values)
            return None


def _fields(
    scope: str, vector: Vector | None, vector_type: VectorType, answer: NewAnswer, release: str
) -> dict[str, Any]:
    """The hash of an entry, without its times."""
    fields: dict[str, Any] = {
        "scope": scope,
        "tenant": answer.tenant,
        "question": answer.question,
        "answer": answer.answer,
        "model": answer.model,
        "release": release,
        "sources": orjson.dumps(answer.sources),
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }
    if stored := vector_fields(vector, vector_type):
        fields |= {**stored, "unread": orjson.dumps(answer.unread)}
    if answer.grounds is not None:
        compared = vector_type if stored and not answer.is_follow_up else None
        fields |= ground_fields(answer.tenant, answer.grounds, compared)
    return fields


def _tags(digest: str, tenant: str) -> list[str]:
    """The invalidation tags of a question's answer, whatever it cites."""
    return ["all", RUNNING, f"tenant:{tenant}", f"{ERASED}{owner_of(tenant)}", f"question:{digest}"]


def _decode(key: str, values: Sequence[Any]) -> CachedAnswer:
    text = [value.decode() if isinstance(value, bytes) else value for value in values]
    *needed, unread, group = text
    if None in needed:
        raise ValueError("a field is missing")
    question, answer, model, sources, prompt_tokens, completion_tokens, created, expires = needed
    return CachedAnswer(
        entry=key,
        question=question,
        answer=answer,
        model=model,
        sources=tuple([source_of(source) for source in found]) if (found := orjson.loads(sources)) else (),
        usage=Usage(int(prompt_tokens), int(completion_tokens)),
        created_ms=int(created),
        expires_ms=int(expires),
        unread=None if unread is None else tuple(map(str, orjson.loads(unread))),
        group=str(group) if group else own_group(key, int(created)),
    )


def own_group(entry: str, created_ms: int) -> str:
    """The answer group of an entry that has joined no other. The script `join` builds the same name."""
    return f"{created_ms}-{entry[-DIGEST:][:GROUP_DIGITS]}"


def _settle(charge: Charge, reply: Any) -> None:
    """Sets a charge's decision. Without a reply, it was not charged."""
    charge.is_sent = reply is not None
    if reply is not None:
        decide(charge, reply)


class RedisCondensedQuestions:
    """Follow-up questions, rewritten to stand alone.

    Key: `rag:condensed:<digest>`, for as long as an answer is fresh.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, ttl_ms: int) -> None:
        self._redis = redis
        self._texts = redis.texts
        self._keys = keys
        self._ttl_ms = ttl_ms

    async def find(self, place: str) -> str | None:
        """The stand-alone question; empty if it cannot be rewritten; None if nothing is stored."""
        key = self._keys.condensed(place)
        found: Any = await self._redis.of(key).run("condensed", lambda client: client.get(key))
        if found is None:
            return None
        with suppress(Undecryptable):
            return self._texts.decrypt(key, "question", found).decode()
        return None

    async def remember(self, place: str, question: str) -> None:
        """Stores it for as long as an answer is fresh."""
        key = self._keys.condensed(place)
        stored = self._texts.encrypt(key, "question", question)
        await self._redis.of(key).run("condensed", lambda client: client.set(key, stored, px=self._ttl_ms))
