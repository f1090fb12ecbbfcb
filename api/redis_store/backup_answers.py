"""Entries of the cache as a backup has them: with what they cite, by digest, and their absolute times."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.ports.backup import StoredAnswer
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.cache_selection import EntryKey
from api.redis_store.clock import milliseconds
from api.redis_store.document_digests import DocumentDigests
from api.redis_store.document_fields import named
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.replies import replies_of
from api.redis_store.scanning import scanned_once

READ: Final = 100
"""Entries read by one command."""
NEEDED: Final = ("scope", "tenant", "question", "answer", "model", "sources", "created_ms", "expires_ms")


class AnswerReader:
    """Raises `StoreUnavailable`."""

    def __init__(self, gate: Gates, keys: Keys) -> None:
        self._gate = gate
        self._keys = keys
        self._digests = DocumentDigests(gate, keys)

    async def all(self, tenants: Collection[str]) -> AsyncIterator[StoredAnswer]:
        """See `ports.BackupSource.answers`."""
        for part in self._keys.partitions:
            async for parsed in self._found(part):
                for start in range(0, len(parsed), READ):
                    read = await self._read(part, parsed[start : start + READ])
                    wanted = [answer for answer in read if not tenants or answer.tenant in tenants]
                    for answer in await self._cited(wanted):
                        yield answer

    async def _found(self, part: CacheKeys) -> AsyncIterator[list[EntryKey]]:
        gate = self._gate.of(part.invalidated)
        async for found in scanned_once(gate, "backup", part.invalidated, f"{part.entries}*"):
            parsed = [EntryKey.parsed(part, key) for key in found if part.holds(key)]
            yield [entry for entry in parsed if entry is not None]

    async def _read(self, part: CacheKeys, entries: Sequence[EntryKey]) -> list[StoredAnswer]:
        async def ask(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.time()
                for entry in entries:
                    pipe.hgetall(entry.key)
                    pipe.pttl(entry.key)
                    pipe.hget(part.books[2], entry.key)
                return await replies_of(pipe)

        time, *replies = await self._gate.of(part.invalidated).run("backup", ask)
        now_ms = milliseconds(time)
        threes = zip(entries, replies[::3], replies[1::3], replies[2::3], strict=True)
        found = [_answer(entry, fields, now_ms + left, uses) for entry, fields, left, uses in threes if left > 0]
        return [answer for answer in found if answer is not None]

    async def _cited(self, answers: Sequence[StoredAnswer]) -> list[StoredAnswer]:
        """Those whose documents serve in the revisions that they cite, with the digests of these."""
        cited = [_revisions(answer.fields["sources"]) for answer in answers]
        serving = await self._digests.serving(sorted({document for one in cited for document in one}))
        found = []
        for answer, revisions in zip(answers, cited, strict=True):
            if all(serving.get(document, (0, ""))[0] == at for document, at in revisions.items()):
                digests = {document: serving[document][1] for document in revisions}
                found.append(
                    StoredAnswer(
                        answer.scope, answer.digest, answer.fields, answer.vector, answer.gone_ms, answer.uses, digests
                    )
                )
        return found


def _answer(entry: EntryKey, reply: Any, gone_ms: int, uses: bytes | None) -> StoredAnswer | None:
    """None for one that is gone, is no entry, or that can not be read."""
    if isinstance(reply, ResponseError):
        return None
    raw = named(reply)
    vector = raw.pop("vector", None)
    try:
        fields = {name: value.decode() for name, value in raw.items()}
        _revisions(fields["sources"])
    except (ValueError, KeyError, TypeError):
        return None
    if any(name not in fields for name in NEEDED):
        return None
    return StoredAnswer(entry.scope, entry.digest, fields, vector, gone_ms, int(uses or 0), {})


def _revisions(sources: str) -> Mapping[str, int]:
    """The documents that an answer cites, with their revisions."""
    return {str(source["document_id"]): int(source.get("revision", 0)) for source in orjson.loads(sources)}
