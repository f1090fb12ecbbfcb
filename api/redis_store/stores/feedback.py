"""Feedback on answers: remembers what went out, and takes an answer out of service that a user judged bad.

An answer goes out on one worker and is judged on any. Each worker writes its answers to Redis in batches, a few
milliseconds late and off the request's path. A vote finds the answer by its request ID, and one script does the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import orjson

from api.errors import StoreUnavailable
from api.ports.answer_cache import FeedbackVerdict, ServedAnswer, ServedStatus, Vote, Voted
from api.ports.answer_quality import Evidence, Label, QualityState, Verdict
from api.ports.question import AnswerFinished, Query
from api.ports.telemetry import Telemetry
from api.quality.evidence import NEIGHBOURS, NearEntry, evidence_of
from api.redis_store.encryption import TextCipher
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import script
from api.redis_store.search_index import VECTOR_FIELDS, decoded
from api.redis_store.stores.cache.entries import answer_digest, decrypted_fields
from api.redis_store.stores.cache.semantic_index import Neighbor, SemanticIndexes
from api.redis_store.stores.cache.sweep import TAGS_LIFETIME_MS
from api.redis_store.stores.label_store import RedisLabels
from api.values import CacheStatus, FlightKey

DELAY_SECONDS: Final = 0.02
"""Delay of the writes. More answers share a round trip if it is longer."""
LATE_SECONDS: Final = 0.05
"""How long an unknown answer may still be on its way from another worker."""
RETRY_SECONDS: Final = 1.0
BATCH: Final = 100
"""Answers per script call, and those made ready before others get their turn: more would keep hits waiting."""
MOST_UNSENT: Final = 10_000
"""Answers that a worker keeps while Redis is down. The oldest go first."""
MOST_PER_MINUTE: Final = 10_000
"""Answers of the fleet that are remembered a minute."""
MOST: Final = 1_000_000
"""Answers of the fleet that are remembered at once; about 280 MB."""
MINUTE_MS: Final = 60_000
NEAR: Final = 0.8
"""Lowest cosine of a copy: an entry of the same scope with the same answer."""
MOST_COPIES: Final = 64
MOST_QUARANTINED: Final = 1000
"""Quarantined entries of a partition. The oldest is deleted first."""
NONE: Final = "-"
CHAT_PREFIX: Final = "chatcmpl-"
"""OpenAI's clients see the request ID with this prefix."""

Noted = tuple[str, Query, AnswerFinished, FlightKey | None]
"""Begins with the request ID."""


class ServedAnswers:
    """The answers that went out, by request ID, for `lifetime_ms`; 0 remembers none.

    Keys: `rag:served:<request ID>`. `on_left_out` is called with the number of answers that a full minute did not take.
    A request calls `note` and `wake`, which do no I/O.
    """

    def __init__(
        self, redis: HealthGatedClients, keys: Keys, lifetime_ms: int, on_left_out: Callable[[int], None]
    ) -> None:
        self._prefixes = [keys.served, keys.served_count]
        self._redis = redis.of(keys.served)
        self._lifetime_ms = lifetime_ms
        self._on_left_out = on_left_out
        self._noted: deque[Noted] = deque(maxlen=MOST_UNSENT if lifetime_ms else 0)
        self._unsent: deque[tuple[str, str]] = deque(maxlen=MOST_UNSENT)
        self._full_until = 0.0
        """Until then nothing is written: the minute is full."""
        self._awake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._remember = script(redis.client, "stores/feedback", "remember")
        self._recall = script(redis.client, "stores/feedback", "recall")
        self.note = self._noted.append
        self.wake = self._awake.set

    async def flush(self) -> None:
        """Writes what was noted. Raises `StoreUnavailable` and keeps the rest."""
        async with self._writing:
            left = len(self._noted)
            while left or self._unsent:
                left -= self._make_ready(min(left, BATCH))
                while batch := list(islice(self._unsent, BATCH)):
                    await self._write(batch)
                    for _ in batch:
                        self._unsent.popleft()

    def _make_ready(self, count: int) -> int:
        """Makes records of so many answers. In a full minute leaves them out. Returns `count`."""
        is_full, left_out = time.monotonic() < self._full_until, 0
        for _ in range(count):
            request_id, query, answered, key = self._noted.popleft()
            if not request_id or query.cache_control.no_store:
                continue
            if is_full:
                left_out += 1
            else:
                self._unsent.append((request_id, _record(_served(query, answered, key))))
        if left_out:
            self._on_left_out(left_out)
        return count

    async def _write(self, batch: Sequence[tuple[str, str]]) -> None:
        most = min(MOST_PER_MINUTE, MOST * MINUTE_MS // max(self._lifetime_ms, MINUTE_MS))
        arguments: list[str | int] = [self._lifetime_ms, most, *(part for one in batch for part in one)]
        reply: Any = await self._redis.run("served", lambda client: self._remember(self._prefixes, arguments, client))
        left_out, ms = map(int, reply)
        if left_out:
            self._full_until = time.monotonic() + ms / 1000
            self._on_left_out(left_out)

    async def recall(self, request_id: str, tenant: str, *, of_any_tenant: bool) -> ServedAnswer | None:
        """Finds an answer that went out, to this tenant or, with `of_any_tenant`, to another.

        If it is unknown, gives other workers time to write it.
        """
        if self._has_noted(_forms(request_id)):
            await self.flush()
        found = await self._recalled(request_id, tenant, of_any_tenant)
        if found is None:
            await asyncio.sleep(LATE_SECONDS)
            found = await self._recalled(request_id, tenant, of_any_tenant)
        return found

    def _has_noted(self, forms: Collection[str]) -> bool:
        """Returns whether this worker has still to write the answer. Otherwise a vote need not wait for the write."""
        return any(request_id in forms for request_id, *_ in self._noted) or any(
            request_id in forms for request_id, _ in self._unsent
        )

    async def _recalled(self, request_id: str, tenant: str, of_any_tenant: bool) -> ServedAnswer | None:
        keys = [f"{self._prefixes[0]}{key}" for form in _forms(request_id) for key in (f"{form} {tenant}", form)]
        arguments: list[str | int] = [tenant, int(of_any_tenant)]
        found = await self._redis.run("feedback", lambda client: self._recall(keys, arguments, client))
        return _read(found.decode()) if found else None

    async def keep_writing(self) -> None:
        """Writes answers soon after they go out. Runs as a task of the worker."""
        while True:
            await self._awake.wait()
            await asyncio.sleep(DELAY_SECONDS)
            self._awake.clear()
            try:
                await self.flush()
            except StoreUnavailable:
                self._awake.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def aclose(self) -> None:
        """Writes what is left, if Redis is up."""
        try:
            await self.flush()
        except StoreUnavailable:
            return


def _forms(request_id: str) -> Collection[str]:
    return dict.fromkeys((request_id, request_id.removeprefix(CHAT_PREFIX)))


def _served(query: Query, answered: AnswerFinished, key: FlightKey | None) -> ServedAnswer:
    match = answered.match
    status = match.kind if match is not None and answered.status is CacheStatus.HIT else answered.status.value
    entry = match.answer.entry if match is not None else answered.entry or ""
    scope, asked = key if key is not None else ("", "")
    return ServedAnswer(
        cast("ServedStatus", status),
        round(match.similarity, 4) if match is not None else 0.0,
        scope,
        asked,
        entry.rpartition(":")[2] or asked,
        answer_digest(answered.answer),
        query.tenant,
        query.variant.label if query.variant is not None else "",
        query.variant.group if query.variant is not None else 0,
    )


def _record(served: ServedAnswer) -> str:
    """The answer as a line. The entry is usually the question's own, which `-` stands for.

    A variant stands behind the status: `exact@experiment/variant/17`, the last one being the group.
    """
    own = NONE if served.entry == served.asked else served.entry
    status = f"{served.status}@{served.variant}/{served.group}" if served.variant else served.status
    place = f"{served.scope or NONE} {served.asked or NONE} {own}"
    return f"{status} {served.similarity:g} {place} {served.answer} {served.tenant}"


def _read(record: str) -> ServedAnswer:
    status, similarity, scope, asked, entry, answer, tenant = record.split(" ", 6)
    scope, asked = ("", "") if scope == NONE else (scope, asked)
    own = asked if entry == NONE else entry
    status, _, place = status.partition("@")
    variant, _, group = place.rpartition("/")
    return ServedAnswer(
        cast("ServedStatus", status), float(similarity), scope, asked, own, answer, tenant, variant, int(group or 0)
    )


LABELLED: Final = ("exact", "semantic", "stale")
"""Votes on these are labels. A vote on a fresh answer says nothing about the cache."""


class RedisFeedback:
    """Votes on the answers that went out. `lifetime_ms`: how long votes are kept, as long as an answer at most.

    `quality`: the policy and the versions that labels note.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        keys: Keys,
        indexes: SemanticIndexes,
        served: ServedAnswers,
        labels: RedisLabels,
        telemetry: Telemetry,
        quality: Callable[[], QualityState],
        lifetime_ms: int,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._indexes = indexes
        self._served = served
        self._labels = labels
        self._telemetry = telemetry
        self._quality = quality
        self._lifetime_ms = lifetime_ms
        self._vote = script(redis.client, "stores/cache/answers", "vote")
        self._note_label = script(redis.client, "stores/cache/answers", "note_label")

    async def vote(self, tenant: str, vote: Vote, *, of_any_tenant: bool) -> Voted | None:
        """Records a vote. A bad one takes the answer and its copies out of service before this returns.

        None if the answer is unknown, too old, or another tenant's. Raises `StoreUnavailable`.
        """
        served = await self._served.recall(vote.request_id, tenant, of_any_tenant=of_any_tenant)
        if served is None:
            return None
        voted = await self._voted(served, vote) if served.scope else Voted(served)
        self._telemetry.voted(vote, voted)
        return voted

    async def _voted(self, served: ServedAnswer, vote: Vote) -> Voted:
        part = self._keys.partition(served.scope)
        entry = part.entry(served.scope, served.entry)
        keys = part.feedback(served.scope, served.entry)
        known = await self._known(
            part, served.scope, entry, keys[0], MOST_COPIES if vote.verdict == "bad" else NEIGHBOURS
        )
        near = [one.key for one in known.neighbors if one.similarity >= NEAR and vote.verdict == "bad"]
        for one in dict.fromkeys((entry, *known.copies, *near)):
            flight, _, refresh = part.flight(served.scope, one.rpartition(":")[2])
            keys += (one, part.quarantine(one), flight, refresh)
        limits = (self._lifetime_ms, TAGS_LIFETIME_MS, MOST_QUARANTINED)
        arguments: list[Any] = [
            vote.verdict,
            vote.voter,
            served.answer,
            known.group,
            f"question:{served.asked}",
            *limits,
        ]
        arguments += (part for pair in _why(self._redis.texts, served, vote).items() for part in pair)
        reply = await self._redis.of(entry).run("feedback", lambda client: self._vote(keys, arguments, client))
        former, label = (one.decode() for one in reply[:2])
        if served.status in LABELLED and former != vote.verdict:
            with suppress(StoreUnavailable):  # on a cluster labels may be on another shard; the vote counts
                await self._label(served, vote, _evidence(served, entry, known), keys[0], label)
        return Voted(served, cast("FeedbackVerdict | None", former or None), int(reply[2]))

    async def _label(self, served: ServedAnswer, vote: Vote, evidence: Evidence, votes: str, former: str) -> None:
        """Writes the vote as a label, in place of the key's former one."""
        known = self._quality()
        versions = replace(known.versions, embedder=served.scope.partition("-")[0])
        verdict = Verdict.SAME if vote.verdict == "good" else Verdict.DIFFERENT
        label = Label(
            evidence,
            verdict,
            "feedback",
            served=True,
            kind=served.status,
            policy=known.policy,
            versions=versions,
            entry=served.entry,
        )
        if former:
            await self._labels.retract(served.scope, former)
        arguments = [vote.voter, await self._labels.add(served.scope, served.tenant, label)]
        self._telemetry.labelled("feedback", verdict)
        await self._redis.of(votes).run("feedback", lambda client: self._note_label([votes], arguments, client))

    async def _known(self, part: CacheKeys, scope: str, entry: str, votes: str, most: int) -> _Known:
        index, names = self._indexes.of(scope), ("group", *VECTOR_FIELDS.values())

        async def ask(client: Any) -> Any:
            async with client.pipeline(transaction=False) as pipe:
                for key in (entry, part.quarantine(entry)):
                    pipe.hmget(key, *names)
                pipe.hget(votes, "copies")
                if index.supported:
                    pipe.execute_command("FT._LIST")
                return await pipe.execute()

        in_service, quarantined, copies, *listed = await self._redis.of(entry).run("feedback", ask)
        fields = {name: one or other for name, one, other in zip(names, in_service, quarantined, strict=True)}
        indexes = [name.decode("utf-8", "replace") for found in listed for name in found]
        vector = decoded(fields)
        neighbors = await index.near(scope, vector, most, indexes) if vector is not None else []
        return _Known((fields["group"] or b"").decode(), (copies or b"").decode().split(), neighbors)


class _Known(NamedTuple):
    """The group of an entry's answer, the copies that were quarantined with it, and the entries near it."""

    group: str
    copies: Sequence[str]
    neighbors: Sequence[Neighbor]


def _evidence(served: ServedAnswer, entry: str, known: _Known) -> Evidence:
    """Returns the evidence about an answer, as far as it can be reconstructed later.

    The asked question's vector is not kept. The similarity of another entry to it is estimated as that to the entry
    that answered times that entry's own.
    """
    if served.status == "exact":
        return Evidence(served.similarity)
    others = [one for one in known.neighbors if one.key != entry][: NEIGHBOURS - 1]
    near = [NearEntry(served.similarity * one.similarity, one.group) for one in others]
    return evidence_of([NearEntry(served.similarity, known.group or entry), *near], 0)


def _why(texts: TextCipher, served: ServedAnswer, vote: Vote) -> dict[str, str | bytes]:
    """The fields of a quarantined entry that say why. `docs/redis-keys.md` lists them."""
    return {
        "by": vote.voter,
        "request": vote.request_id,
        "asked": served.asked,
        "status": served.status,
        "similarity": f"{served.similarity:g}",
        "comment": texts.encrypt(vote.request_id, "comment", vote.comment),
    }


class QuarantinedAnswer(NamedTuple):
    """An answer that was judged bad. `question`: that of its entry. `is_asked`: the judged request asked the same.

    Of a semantic hit only the digest of the asked question is known. `sources`: the titles of its passages.
    """

    question: str
    answer: str
    sources: tuple[str, ...]
    tenant: str
    request: str
    comment: str
    is_asked: bool


_KEPT: Final = ("question", "answer", "sources", "tenant", "request", "comment", "asked")


async def quarantined_answers(redis: HealthGatedClients, keys: Keys, most: int) -> list[QuarantinedAnswer]:
    """Returns the answers that were judged bad last, newest first, one for each request. Raises `StoreUnavailable`."""
    found: dict[str, tuple[float, QuarantinedAnswer]] = {}
    for part in keys.partitions:
        for copy, score, fields in await _quarantined(redis, part):
            if None in fields:
                continue  # it has expired or came back
            plain = _decrypted(redis.texts, part.released(copy), dict(zip(_KEPT, fields, strict=True)))
            one = _quarantined_answer(copy, [field.decode("utf-8", "replace") for field in plain])
            if one.request not in found or one.is_asked:
                found[one.request] = (score, one)
    newest = sorted(found.values(), key=lambda known: known[0], reverse=True)
    return [one for _, one in newest[:most]]


def _decrypted(texts: TextCipher, entry: str, fields: Mapping[str, bytes]) -> list[bytes]:
    """The values in order. A comment is bound to the judged request: a vote takes several entries out of service."""
    plain = decrypted_fields(texts, entry, fields)
    request = fields["request"].decode("utf-8", "replace")
    return list({**plain, "comment": texts.decrypt(request, "comment", fields["comment"])}.values())


async def _quarantined(redis: HealthGatedClients, part: CacheKeys) -> list[tuple[str, float, list[Any]]]:
    async def read(client: Any) -> Any:
        listed = await client.zrange(part.quarantined, 0, MOST_QUARANTINED - 1, desc=True, withscores=True)
        async with client.pipeline(transaction=False) as pipe:
            for copy, _ in listed:
                pipe.hmget(copy, *_KEPT)
            fields = await pipe.execute()
        return [(copy.decode(), score, known) for (copy, score), known in zip(listed, fields, strict=True)]

    found: list[tuple[str, float, list[Any]]] = await redis.of(part.quarantined).run("feedback", read)
    return found


def _quarantined_answer(copy: str, fields: Sequence[str]) -> QuarantinedAnswer:
    question, answer, sources, tenant, request, comment, asked = fields
    titles = dict.fromkeys(str(source["title"]) for source in orjson.loads(sources))
    return QuarantinedAnswer(
        question, answer, tuple(titles), tenant, request, comment, copy.rpartition(":")[2] == asked
    )
