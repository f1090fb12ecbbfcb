"""Deletes cached answers of the whole fleet: scans the keys in batches, in all partitions at once.

It needs no index, so it finds entries of every embedder, with or without a vector, even while an index is missing or
being built. It finds quarantined entries too. No command keeps Redis busy for longer than a batch.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from api.ports.answer_cache import Neighbourhood, Selection, Swept
from api.redis_store.health_gated import HealthGated, HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import on_all, replies_of, scanned, script
from api.redis_store.search_index import VECTOR_FIELDS, cosines, encoded
from api.values import erased_tag, model_key

ROUNDING: Final = 1e-6
"""Rounding error of the cosine of two equal vectors."""

Fields = Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class EntryKey:
    """The parts of `rag:cache:<scope>:<digest>`, or of the key of a quarantined entry."""

    key: str
    scope: str
    digest: str

    @classmethod
    def parsed(cls, keys: CacheKeys, key: str) -> EntryKey | None:
        """None for the key of something else."""
        rest = key.removeprefix(keys.quarantines if key.startswith(keys.quarantines) else keys.entries)
        scope, colon, digest = rest.partition(":")
        return cls(key, scope, digest) if rest != key and colon and scope and digest and ":" not in digest else None


def patterns(keys: CacheKeys, selection: Selection) -> tuple[str, str]:
    """The patterns for SCAN: entries, and quarantined ones."""
    digest = "*" if selection.digest is None or selection.near else selection.digest
    entries = keys.entry("*", digest)
    return entries, keys.quarantine(entries)


_CITED: Final = re.compile(rb'"document_id":"([^"\\]*)"')
RUNNING: Final = "running"
"""Tag of every generation. Unlike `all`, it says nothing about the answers that were stored before."""


def invalidation_tags(keys: CacheKeys, selection: Selection) -> list[str]:
    """The tags that stop running generations from storing such answers."""
    if selection.entry is not None:
        key = EntryKey.parsed(keys, selection.entry)
        return [f"question:{key.digest}"] if key else []
    if selection.digest is not None:
        return [f"question:{selection.digest}"]
    if selection.sources is not None:
        return [f"source:{document}" for document in sorted(selection.sources)]
    if selection.release is not None:
        return [RUNNING, f"release:{selection.release}"]
    if selection.since_ms is not None:
        return [RUNNING]
    return ["all" if selection.tenant is None else f"tenant:{selection.tenant}"]


def wanted_fields(selection: Selection) -> list[str]:
    """The fields of an entry that the decision needs. Every entry has the first one."""
    asked = {
        "tenant": selection.tenant,
        "model": selection.model,
        "sources": selection.sources,
        **dict.fromkeys(VECTOR_FIELDS.values(), selection.near),
        "release": selection.release,
    }
    return ["created_ms", *(name for name, value in asked.items() if value is not None)]


def chosen(keys: CacheKeys, selection: Selection, entries: Sequence[tuple[EntryKey, Fields]]) -> list[EntryKey]:
    """Returns the entries that the selection matches."""
    plain = [(key, fields) for key, fields in entries if _is_meant(selection, fields)]
    if selection.digest is None:
        return [key for key, _ in plain]
    near = _near(selection.near, plain) if selection.near else set()
    return [key for key, _ in plain if key.digest == selection.digest or key in near]


def _is_meant(selection: Selection, fields: Fields) -> bool:
    """Checks everything but the question."""
    return (
        fields["created_ms"] is not None
        and (selection.tenant is None or fields["tenant"] == selection.tenant.encode())
        and (selection.model is None or _same_model(selection.model, fields["model"] or b""))
        and (selection.sources is None or _cites(fields["sources"] or b"", selection.sources))
        and (selection.release is None or fields["release"] == selection.release.encode())
        and (selection.since_ms is None or _milliseconds(fields["created_ms"]) >= selection.since_ms)
    )


def _same_model(asked: str, stored: bytes) -> bool:
    return model_key(asked) == model_key(stored.decode("utf-8", "replace"))


def _milliseconds(stored: bytes | None) -> int:
    return int(stored) if stored and stored.isdigit() else 0


def _cites(sources: bytes, documents: frozenset[str]) -> bool:
    """Searches the JSON as text. A string value cannot match, since its quotes would be escaped."""
    return any(found.decode("utf-8", "replace") in documents for found in _CITED.findall(sources))


def _near(near: Neighbourhood, entries: Sequence[tuple[EntryKey, Fields]]) -> set[EntryKey]:
    """Returns entries whose question is similar enough. Vectors of other embedders cannot be compared."""
    prefix, found = f"{near.embedder.fingerprint}-", set()
    for vector_type, name in VECTOR_FIELDS.items():
        asked = encoded(near.vector, vector_type)
        stored = [(key, fields[name] or b"") for key, fields in entries if key.scope.startswith(prefix)]
        comparable = {key: vector for key, vector in stored if asked and len(vector) == len(asked)}
        if asked and comparable:
            similar = cosines(asked, list(comparable.values()), vector_type) >= near.similarity - ROUNDING
            found |= {key for key, is_similar in zip(comparable, similar, strict=True) if is_similar}
    return found


TAGS_LIFETIME_MS: Final = 3600 * 1000
"""Must be longer than any generation."""
BATCH: Final = 250
"""Entries per read or delete."""
PASSES: Final = 5
DEADLINE: Final = 30.0
"""Seconds for a complete deletion."""


class RedisCacheSweep:
    """Finds and deletes entries of the whole fleet. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._parts = [_PartitionSweep(redis.of(part.invalidated), part) for part in keys.partitions]

    async def sweep(self, selection: Selection, *, dry_run: bool) -> Swept:
        """Deletes the selected entries; `dry_run` only counts them.

        Running generations do not store such answers either.

        If a shard is down, the entries on the other shards are deleted all the same.
        """
        until = time.monotonic() + self._deadline
        concerned = [part for part in self._parts if selection.entry is None or part.keys.holds(selection.entry)]
        swept = await on_all(part.sweep(selection, until, dry_run=dry_run) for part in concerned)
        matched, deleted = sum(one.matched for one in swept), sum(one.deleted for one in swept)
        return Swept(matched, deleted, all(one.complete for one in swept))

    async def erase(self, tenant: str, *, dry_run: bool) -> Swept:
        """Does the same for all answers of a tenant, under a tag that does not name it."""
        until, selection = time.monotonic() + self._deadline, Selection(tenant=tenant)
        tags = [erased_tag(tenant)]
        swept = await on_all(part.sweep(selection, until, dry_run=dry_run, tags=tags) for part in self._parts)
        counts = [(one.matched, one.deleted, one.complete) for one in swept]
        matched, deleted, complete = zip(*counts, strict=True)
        return Swept(sum(matched), sum(deleted), all(complete))

    async def outdate(self, tenant: str) -> None:
        """Notes that a tenant's documents changed: an answer from before is stored only after another check of them."""
        await on_all(part.note([f"corpus:{tenant}"]) for part in self._parts)


class _PartitionSweep:
    """The sweep of one partition. Raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGated, keys: CacheKeys) -> None:
        self._redis = redis
        self.keys = keys
        self._invalidate = script(redis.client, "stores/cache/answers", "invalidate")
        self._drop = script(redis.client, "stores/cache/answers", "drop")

    async def sweep(self, selection: Selection, until: float, *, dry_run: bool, tags: list[str] | None = None) -> Swept:
        """Scans until there is nothing left to delete: SCAN may miss new keys."""
        if dry_run:
            return await self._pass(selection, until, dry_run=True)
        await self.note(invalidation_tags(self.keys, selection) if tags is None else tags)
        await self._end_flights(selection)
        matched = deleted = 0
        for _ in range(PASSES):
            swept = await self._pass(selection, until, dry_run=False)
            matched, deleted = matched + swept.matched, deleted + swept.deleted
            if not (swept.matched and swept.complete):
                break
        return Swept(matched, deleted, swept.complete)

    async def note(self, fields: list[str]) -> None:
        """Sets invalidation tags: answers with these tags that were asked for earlier are not stored as they are."""
        if fields:
            key = self.keys.invalidated
            arguments: list[str | int] = [TAGS_LIFETIME_MS, *fields]
            await self._redis.run("invalidate", lambda client: self._invalidate([key], arguments, client))

    async def _end_flights(self, selection: Selection) -> None:
        """Ends running generations that have no entry yet, so that new callers do not join them."""
        if selection == Selection() or selection.release is not None or selection.since_ms is not None:
            flights = self.keys.flight("*", "*")[0]
        elif selection.digest is not None:
            flights = self.keys.flight("*", selection.digest)[0]
        else:
            return
        async for found in scanned(self._redis, "invalidate", self.keys.invalidated, flights):
            for batch in _batches(found):
                await self._redis.run("invalidate", lambda client, batch=batch: client.unlink(*batch))  # type: ignore[misc]

    async def _pass(self, selection: Selection, until: float, *, dry_run: bool) -> Swept:
        seen: set[str] = set()
        deleted = 0
        async for found in self._found(selection):
            for batch in _batches(found):
                if time.monotonic() > until:
                    return Swept(len(seen), deleted, complete=False)
                meant = chosen(self.keys, selection, await self._read(batch, wanted_fields(selection)))
                seen.update(entry.key for entry in meant)
                if meant and not dry_run:
                    deleted += await self._delete(meant)
        return Swept(len(seen), deleted)

    async def _found(self, selection: Selection) -> AsyncIterator[list[EntryKey]]:
        """Yields the keys that may match, in batches. A key may come twice."""
        if selection.entry is not None:
            yield self._parsed((selection.entry, self.keys.quarantine(selection.entry)))
            return
        for pattern in patterns(self.keys, selection):
            async for found in scanned(self._redis, "invalidate", self.keys.invalidated, pattern):
                yield self._parsed(found)

    def _parsed(self, keys: Iterable[str]) -> list[EntryKey]:
        parsed = (EntryKey.parsed(self.keys, key) for key in keys)
        return [entry for entry in parsed if entry is not None]

    async def _read(
        self, entries: Sequence[EntryKey], names: list[str]
    ) -> list[tuple[EntryKey, dict[str, bytes | None]]]:
        """Reads the fields of each hash. A missing entry has None in all of them."""

        async def ask(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for entry in entries:
                    pipe.hmget(entry.key, names)
                return await replies_of(pipe)

        replies = await self._redis.run("invalidate", ask)
        read = zip(entries, replies, strict=True)
        return [(entry, dict(zip(names, reply, strict=True))) for entry, reply in read if isinstance(reply, list)]

    async def _delete(self, entries: Sequence[EntryKey]) -> int:
        pairs = ((entry.key, self.keys.flight(entry.scope, entry.digest)[0]) for entry in entries)
        keys = [*self.keys.eviction_keys, *(key for pair in pairs for key in pair)]
        return int(await self._redis.run("invalidate", lambda client: self._drop(keys, [], client)))


def _batches(found: Sequence[Any]) -> list[Sequence[Any]]:
    return [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
