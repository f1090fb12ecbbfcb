"""Stores answers of a backup: those that are right for the documents that serve now, and that nobody has deleted.

An answer is right where every document that it cites serves with the very content that it was made from. One that
documents were looked for is fresh only where the tenant has the same documents as then, else stale: others might change
it, as any new document might.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis

from api.ports.backup import AnswerOutcome, StoredAnswer
from api.ports.deletions import Deletions, marks_about
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.clock import now_ms
from api.redis_store.deletions import LIFETIME_MS
from api.redis_store.document_digests import DocumentDigests
from api.redis_store.fan_out import on_all
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

TRIES: Final = 5
"""How often answers are looked at again whose documents change at this moment; after that they are left out."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """An answer as it is to be stored, or why it is not, as looked at at `at_ms` by the clock of its partition."""

    answer: StoredAnswer
    at_ms: int
    outcome: AnswerOutcome
    fields: Mapping[str, str | bytes]


_Act = Callable[[CacheKeys, Mapping[int, _Ready]], Coroutine[Any, Any, dict[int, str]]]


class AnswerWriter:
    """Raises `StoreUnavailable`. `max_size`: of a partition.

    `assumed`, `assumed_deletions`: documents by digest that would serve, and deletions that would be taken over, where
    nothing is really restored.
    """

    def __init__(self, gate: Gates, keys: Keys, deletions: Deletions, max_size: int, *, new_outdate: bool) -> None:
        self._gate = gate
        self._keys = keys
        self._deletions = deletions
        self._digests = DocumentDigests(gate, keys)
        self._max_size = max_size
        self._new_outdate = new_outdate
        self._corpora: dict[str, tuple[int, str]] = {}
        self._restore = script(gate.client, "cache_common", "cache_restore")
        self.assumed: dict[str, str] = {}
        self.assumed_deletions: Mapping[str, int] = {}

    async def put(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> list[AnswerOutcome]:
        """See `ports.BackupTarget.put_answers`."""
        outcomes: list[AnswerOutcome | None] = [None] * len(answers)
        for _ in range(TRIES):
            left = [number for number, outcome in enumerate(outcomes) if outcome is None]
            found = await self._tried([answers[number] for number in left], corpora, dry_run=dry_run)
            for number, outcome in zip(left, found, strict=True):
                outcomes[number] = outcome
        return [outcome or "outdated" for outcome in outcomes]

    async def _tried(
        self, answers: Sequence[StoredAnswer], corpora: Mapping[str, str], *, dry_run: bool
    ) -> list[AnswerOutcome | None]:
        """None for one whose documents have changed since they were looked at."""
        if not answers:
            return []
        clocks = await self._clocks({self._keys.partition(answer.scope) for answer in answers})
        deleted = await self._deletions.noted()
        cited = sorted({document for answer in answers for document in answer.cites})
        serving = await self._digests.serving(cited)
        grounded = set() if self.assumed else {answer.tenant for answer in answers if answer.is_grounded}
        changed = [tenant for tenant in grounded if not await self._is_same(tenant, corpora)]
        ready = []
        for answer in answers:
            is_fresh = not (answer.is_grounded and answer.tenant in changed)
            at_ms = clocks[self._keys.partition(answer.scope)]
            ready.append(_Ready(answer, at_ms, *self._judged(answer, at_ms, deleted, serving, is_fresh=is_fresh)))
        wanted = {number: one for number, one in enumerate(ready) if one.outcome in ("restored", "restored stale")}
        replies = await self._in_parts(self._there_in if dry_run else self._stored_in, wanted)
        outcomes: list[AnswerOutcome | None] = []
        for number, one in enumerate(ready):
            reply = replies.get(number, "restored")
            known = one.outcome if reply == "restored" else cast(AnswerOutcome, reply)
            outcomes.append(None if reply == "changed" else known)
        return outcomes

    def _judged(
        self,
        answer: StoredAnswer,
        now_ms: int,
        deleted: Mapping[str, int],
        serving: Mapping[str, tuple[int, str]],
        *,
        is_fresh: bool,
    ) -> tuple[AnswerOutcome, Mapping[str, str | bytes]]:
        if answer.gone_ms <= now_ms or answer.created_ms <= now_ms - LIFETIME_MS:
            return "expired", {}
        marks = marks_about(answer.digest, answer.tenant, list(answer.cites))
        known = (deleted, self.assumed_deletions)
        if any(noted.get(mark, -1) >= answer.created_ms for noted in known for mark in marks):
            return "deleted since", {}
        revisions = {document: revision for document, (revision, digest) in serving.items()}
        present = {**{document: digest for document, (_, digest) in serving.items()}, **self.assumed}
        if any(present.get(document) != digest for document, digest in answer.cites.items()):
            return "outdated", {}
        ends = int(answer.fields["expires_ms"])
        fields: dict[str, str | bytes] = {**answer.fields, "sources": _cited(answer.fields["sources"], revisions)}
        if answer.vector is not None:
            fields["vector"] = answer.vector
        if is_fresh or ends <= now_ms:
            return "restored", fields
        return "restored stale", {**fields, "expires_ms": str(now_ms)}

    async def _in_parts(self, act: _Act, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        """What became of each, by its number."""
        parts: dict[CacheKeys, dict[int, _Ready]] = {}
        for number, one in wanted.items():
            parts.setdefault(self._keys.partition(one.answer.scope), {})[number] = one
        found = await on_all(act(part, of_part) for part, of_part in parts.items())
        return {number: reply for replies in found for number, reply in replies.items()}

    async def _stored_in(self, part: CacheKeys, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        async def store(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for one in wanted.values():
                    await self._restore(*self._call(part, one), pipe)
                return list(await pipe.execute())

        replies = await self._gate.of(part.invalidated).run("restore", store)
        return {number: reply.decode() for number, reply in zip(wanted, replies, strict=True)}

    async def _there_in(self, part: CacheKeys, wanted: Mapping[int, _Ready]) -> dict[int, str]:
        """As `_stored_in` would say; that others may have no room is not looked at."""

        async def look(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for one in wanted.values():
                    pipe.hget(part.entry(one.answer.scope, one.answer.digest), "created_ms")
                return list(await pipe.execute())

        found = await self._gate.of(part.invalidated).run("restore", look)
        is_there = {
            number: int(at or -1) >= wanted[number].answer.created_ms for number, at in zip(wanted, found, strict=True)
        }
        return {number: "there already" if there else "restored" for number, there in is_there.items()}

    def _call(self, part: CacheKeys, one: _Ready) -> tuple[list[str], list[Any]]:
        answer = one.answer
        keys = [part.entry(answer.scope, answer.digest), part.invalidated, *part.books]
        marks = marks_about(answer.digest, answer.tenant, list(answer.cites))
        documents = f"corpus:{answer.tenant}" if answer.is_grounded else ""
        tokens = answer.fields.get("completion_tokens", "0")
        times = [answer.created_ms, answer.gone_ms, one.at_ms]
        pairs = [part for pair in one.fields.items() for part in pair]
        return keys, [*times, documents, self._max_size, answer.tenant, tokens, answer.uses, len(marks), *marks, *pairs]

    async def _is_same(self, tenant: str, corpora: Mapping[str, str]) -> bool:
        """Whether the tenant has the documents that its answers were made among. Known while nothing changes."""
        if not self._new_outdate:
            return True
        known = self._corpora.get(tenant)
        if known is None or known[0] != await self._digests.epoch(tenant) or not known[1]:
            known = self._corpora[tenant] = await self._digests.corpus(tenant)
        return bool(known[1]) and corpora.get(tenant, "") == known[1]

    async def _clocks(self, parts: Iterable[CacheKeys]) -> dict[CacheKeys, int]:
        """The time by the clock of each partition."""

        async def clock(part: CacheKeys) -> tuple[CacheKeys, int]:
            return part, await self._gate.of(part.invalidated).run("restore", now_ms)

        return dict(await on_all(clock(part) for part in parts))


def _cited(sources: str, revisions: Mapping[str, int]) -> bytes:
    """The sources by the revisions that the documents have here; whatever else they say stays."""
    found = orjson.loads(sources)
    return orjson.dumps([{**one, "revision": revisions.get(one["document_id"], 0)} for one in found])
