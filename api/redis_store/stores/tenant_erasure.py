"""Erases a tenant: everything in Redis that is its own. docs/privacy.md lists what that is.

An answer that is being generated meanwhile is not stored: the tag `erased:<owner>` is newer than its question. What a
worker still holds in memory, such as a comparison of two answers, may be written a little later. So the erasure is
repeated a few times, by any worker. The list of repetitions names the tenant by its digest only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import orjson
from redis.asyncio import Redis

from api.errors import ServiceUnavailable, StoreUnavailable
from api.redis_store.health_gated import HealthGated, HealthGatedClients
from api.redis_store.keys import CacheKeys, Keys
from api.redis_store.scripts import milliseconds, now_ms, replies_of, scanned, script
from api.redis_store.stores.access_keys import RedisAccessKeys
from api.redis_store.stores.cache.sweep import EntryKey, RedisCacheSweep
from api.redis_store.stores.cache.warm_up_jobs import RedisWarmUpJobs
from api.redis_store.stores.documents.document_records import RedisDocuments
from api.redis_store.stores.documents.work import RedisDeletions, RedisDocumentWork
from api.redis_store.stores.fleet import RedisLeaderLease
from api.redis_store.stores.quality_store import RedisQuality
from api.values import erased_tag, owner_of

BATCH: Final = 250
"""Keys or stream entries per command."""
SWEEP_SECONDS: Final = 300.0
LEASE_SECONDS: Final = 60.0
"""Lease of a document's work, and of the repetitions."""
WARM_UP_SECONDS: Final = 1.5
"""Time that a cancelled warm-up takes to end on another worker, at most."""
WAIT_SECONDS: Final = 30.0
"""Longest wait for a worker that deletes a document at the same time."""
REPEATED_MS: Final = (10_000, 60_000, 600_000)
"""When an erasure is repeated."""
LIFETIME_MS: Final = 3600 * 1000
LOOK_SECONDS: Final = 10.0
"""Seconds between looks for repetitions in a small fleet."""
TRIES: Final = 10
TURNS: Final = ("user_turn", "batch_turn", "background_turn")

Scopes = set[str]


class RedisTenantErasure:
    """Erases tenants for the whole fleet. `guards` is the Redis of the bulkheads, which `bulkheads` names."""

    def __init__(
        self,
        redis: HealthGatedClients,
        guards: HealthGatedClients,
        keys: Keys,
        worker: str,
        bulkheads: Sequence[str],
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._redis = redis
        self._guards = guards
        self._keys = keys
        self._bulkheads = bulkheads
        self._pace = pace
        self._documents = RedisDocuments(redis, keys)
        self._work = RedisDocumentWork(redis, keys, worker, reads=())
        self._access_keys = RedisAccessKeys(redis, keys)
        self._sweep = RedisCacheSweep(redis, keys, SWEEP_SECONDS)
        self._jobs = RedisWarmUpJobs(redis, keys, worker)
        self._deletions = RedisDeletions(redis, keys)
        self._traces = _Traces(redis, keys, RedisQuality(redis, keys, worker))
        self._lease = RedisLeaderLease(redis, keys.erasure_lease, worker)
        self._drop = script(redis.client, "stores/cache/answers", "drop")
        self._forget_corpus = script(redis.client, "stores/documents/document_records", "forget_corpus")

    async def erase(self, tenant: str, dry_run: bool) -> Counter[str]:
        """Erases a tenant; `dry_run` only counts. Returns how much there was of what. You can repeat it.

        Raises `StoreUnavailable` and `ServiceUnavailable`; then repeat it.
        """
        owner = owner_of(tenant)
        if not dry_run:
            await self._schedule(owner, 0, await self._redis.of(self._keys.erasures).run("erase", now_ms))
            await self._deletions.note([erased_tag(tenant)])
        found = Counter({"warm_ups": await self._cancel_warm_ups(owner, dry_run=dry_run)})
        found["documents"] = await self._erase_documents(tenant, dry_run=dry_run)
        scopes = await self._scopes(tenant, dry_run=dry_run)
        swept = await self._sweep.erase(tenant, dry_run=dry_run)
        if not swept.complete:
            raise ServiceUnavailable("Not all answers were looked at in time. Repeat it.", retry_after=1)
        found["answers"] = swept.matched
        found.update(await self._traces.erase(owner, scopes, dry_run=dry_run))
        found["keys"] = await self._revoke_keys(tenant, dry_run=dry_run)
        if not dry_run:
            await self._erase_bookkeeping(tenant)
            await self._erase_turns(owner)
            key, name = self._keys.cache_deleted, f"tenant:{tenant}"
            await self._redis.of(key).run("erase", lambda client: client.zrem(key, name))
        return found

    async def _revoke_keys(self, tenant: str, *, dry_run: bool) -> int:
        found = [record for record in await self._access_keys.all() if record.spec.tenant == tenant]
        for record in found:
            if not dry_run:
                await self._access_keys.revoke(record.id)
        return len(found)

    # -- warm-ups -----------------------------------------------------------------------------------------------------

    async def _cancel_warm_ups(self, owner: str, *, dry_run: bool) -> int:
        """Cancels the warm-ups with questions of the tenant: they would answer them again."""
        found = [job for job in await self._jobs.unfinished() if await self._has_questions(job, owner)]
        if not dry_run:
            for job in found:
                await self._jobs.cancel(job)
            if found:
                await asyncio.sleep(WARM_UP_SECONDS)
        return len(found)

    async def _has_questions(self, job: str, owner: str) -> bool:
        queue = self._keys.cache_warm_up(job)[1]
        start = 0
        while True:
            part: Any = await self._redis.of(queue).run(
                "erase",
                lambda client, at=start: client.lrange(queue, at, at + BATCH - 1),  # type: ignore[misc]
            )
            if any(_is_of(owner, _json(question).get("tenant")) for question in part):
                return True
            if len(part) < BATCH:
                return False
            start += BATCH

    # -- documents ----------------------------------------------------------------------------------------------------

    async def _erase_documents(self, tenant: str, *, dry_run: bool) -> int:
        """Deletes the documents, and those that were being stored or deleted."""
        keys, owner = self._keys, owner_of(tenant)
        redis, listed = self._redis.of(keys.corpus_state), keys.corpus_documents(owner)
        stored: Any = await redis.run("erase", lambda client: client.zrange(listed, 0, -1))
        pending: Any = await redis.run("erase", lambda client: client.zrange(keys.corpus_work, 0, -1))
        names = list(dict.fromkeys(document.decode() for document in (*stored, *pending)))
        documents = {document.decode() for document in stored}
        for document in names:
            if document in documents or await self._is_changing(redis, document, tenant):
                documents.add(document)
                if not dry_run:
                    await self._erase_document(document, tenant)
        if not dry_run:
            corpus = [keys.corpus(owner), listed]
            await redis.run("erase", partial(self._forget_corpus, corpus, []))
        return len(documents)

    async def _is_changing(self, redis: HealthGated, document: str, tenant: str) -> bool:
        key = self._keys.document_work(document)
        return bool(await redis.run("erase", lambda client: client.hget(key, "tenant")) == tenant.encode())

    async def _erase_document(self, document: str, tenant: str) -> None:
        """Deletes a document and its chunks. Its answers go with those of the tenant.

        A worker that dies in the middle leaves the deletion as work for the others.
        """
        await self._documents.delete(document, tenant)
        until = time.monotonic() + WAIT_SECONDS
        while True:
            work = await self._work.take(document, LEASE_SECONDS)
            if work is not None and work.phase == "tell":
                await self._work.finish(work)
                return
            if work is not None:
                await self._work.release(work)
                return  # someone has stored it again
            if not await self._work.exists(document):
                return
            if time.monotonic() > until:
                raise ServiceUnavailable("Another worker still deletes a document. Repeat it.", retry_after=1)
            await asyncio.sleep(0.05)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _scopes(self, tenant: str, *, dry_run: bool) -> Scopes:
        """Returns the scopes of the tenant's entries, and takes quarantined ones off their list."""
        scopes: Scopes = set()
        for part in self._keys.partitions:
            redis = self._redis.of(part.invalidated)
            scopes |= {one.scope for one in await self._entries(redis, part, tenant)}
            scopes |= await self._erase_quarantined(redis, part, tenant, dry_run=dry_run)
        return scopes

    async def _entries(self, redis: HealthGated, part: CacheKeys, tenant: str) -> list[EntryKey]:
        """Returns the entries that the eviction keys name, also those that Redis has evicted."""
        tenants = part.eviction_keys[3]
        named: Any = await redis.run("erase", lambda client: client.hgetall(tenants))
        entries = (EntryKey.parsed(part, entry.decode()) for entry, of in named.items() if of == tenant.encode())
        return [entry for entry in entries if entry is not None]

    async def _erase_bookkeeping(self, tenant: str) -> None:
        """Deletes what the eviction keys and the invalidation tags still say about the tenant."""
        for part in self._keys.partitions:
            redis = self._redis.of(part.invalidated)
            left = await self._entries(redis, part, tenant)
            for some in _batches(left):
                pairs = ((entry.key, part.flight(entry.scope, entry.digest)[0]) for entry in some)
                keys = [*part.eviction_keys, *(key for pair in pairs for key in pair)]
                await redis.run("erase", partial(self._drop, keys, []))
            await redis.run("erase", partial(_forget_tenant, part, tenant))

    async def _erase_quarantined(self, redis: HealthGated, part: CacheKeys, tenant: str, *, dry_run: bool) -> Scopes:
        """Takes the tenant's entries off the list of quarantined ones. The sweep deletes them."""
        listed = part.quarantined
        copies: Any = await redis.run("erase", lambda client: client.zrange(listed, 0, -1))

        async def tenants(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for copy in copies:
                    pipe.hget(copy, "tenant")
                return await replies_of(pipe)

        found = zip(copies, await redis.run("erase", tenants), strict=True)
        own = [copy for copy, name in found if name == tenant.encode()]
        if own and not dry_run:
            await redis.run("erase", lambda client: client.zrem(listed, *own))
        parsed = (EntryKey.parsed(part, copy.decode()) for copy in own)
        return {one.scope for one in parsed if one is not None}

    # -- afterwards ---------------------------------------------------------------------------------------------------

    async def _erase_turns(self, owner: str) -> None:
        """Forgets that the tenant was served last."""
        for name in self._bulkheads:
            stats = self._keys.bulkhead(name)[3]
            redis = self._guards.of(stats)
            turns = await redis.run("erase", lambda client, key=stats: client.hmget(key, *TURNS))  # type: ignore[misc]
            for field, tenant in zip(TURNS, turns, strict=True):
                if tenant is not None and _is_of(owner, unquote(tenant.decode())):
                    await redis.run("erase", lambda client, key=stats, one=field: client.hdel(key, one))  # type: ignore[misc]

    async def _schedule(self, owner: str, stage: int, since_ms: int) -> None:
        """Notes the next repetition of an erasure that began then."""
        key, due = self._keys.erasures, {f"{owner}:{stage}:{since_ms}": since_ms + REPEATED_MS[stage]}

        async def note(client: Redis) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.zadd(key, due)
                pipe.pexpire(key, LIFETIME_MS)
                await pipe.execute()

        await self._redis.of(key).run("erase", note)

    async def keep_repeating(self) -> None:
        """Repeats erasures that are due, forever. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * self._pace())
            with suppress(StoreUnavailable):
                await self.repeat_due()

    async def repeat_due(self) -> None:
        """Repeats what is due, if no other worker does. Raises `StoreUnavailable`."""
        key = self._keys.erasures
        redis = self._redis.of(key)

        async def read(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.zrange(key, 0, -1, withscores=True)
                pipe.time()
                replies: list[Any] = await pipe.execute()
                return replies

        listed, clock = await redis.run("erase", read)
        due = [one.decode() for one, at in listed if at <= milliseconds(clock)]
        if not due or not await self._lease.acquire(LEASE_SECONDS):
            return
        for one in due:
            owner, stage, since_ms = one.split(":")
            await self._traces.erase(owner, set(), dry_run=False)
            await self._erase_turns(owner)
            if int(stage) + 1 < len(REPEATED_MS):
                await self._schedule(owner, int(stage) + 1, int(since_ms))
            await redis.run("erase", lambda client, done=one: client.zrem(key, done))  # type: ignore[misc]
        await self._lease.release()


async def _forget_tenant(part: CacheKeys, tenant: str, client: Redis) -> None:
    _, _, uses, _, tenants = part.eviction_keys
    async with client.pipeline(transaction=False) as pipe:
        pipe.unlink(part.entries_of(tenant))
        pipe.zrem(tenants, tenant)
        pipe.hdel(uses, f"last_evicted:{tenant}")
        await pipe.execute()


# -- traces ------------------------------------------------------------------------------------------------------------


class _Traces:
    """What else the fleet remembers of a tenant, found by the tenant's digest. Raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, quality: RedisQuality) -> None:
        self._redis = redis
        self._keys = keys
        self._quality = quality

    async def erase(self, owner: str, scopes: Scopes, *, dry_run: bool) -> Counter[str]:
        """Returns how much there was. Adds further scopes of the tenant to `scopes`."""
        found: Counter[str] = Counter()
        found["served"] = await self._served(owner, scopes, dry_run=dry_run)
        found["labels"] = await self._stream(self._keys.labels, owner, scopes, dry_run=dry_run)
        found["pairs"] = await self._stream(self._keys.labelled_pairs, owner, scopes, dry_run=dry_run)
        await self._labels_of_scopes(owner, scopes, dry_run=dry_run)
        found["votes"] = await self._votes(scopes, dry_run=dry_run)
        found["condensed"] = await self._condensed(owner, dry_run=dry_run)
        if not dry_run:
            await self._models(scopes)
            await self._judgement(owner, found["labels"])
            await self._names(owner)
            await self._warm_up_errors()
            await self._unlink(self._keys.recent, [self._keys.recent])
        return found

    async def _served(self, owner: str, scopes: Scopes, *, dry_run: bool) -> int:
        """The answers that can be judged. A record ends with its tenant; its third word is the scope."""
        prefix, count = self._keys.served, 0
        redis = self._redis.of(prefix)

        async def read(client: Redis, names: Sequence[str]) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.get(name)
                return await replies_of(pipe)

        async for names in _scanned_batches(redis, prefix, f"{prefix}*"):
            records = await redis.run("erase", partial(read, names=names))
            own = []
            for name, record in zip(names, records, strict=True):
                parts = record.decode("utf-8", "replace").split(" ", 6) if isinstance(record, bytes) else []
                if len(parts) == 7 and _is_of(owner, parts[6]):
                    scopes.add(parts[2])
                    own.append(name)
            count += len(own)
            if not dry_run:
                await self._unlink(prefix, own)
        return count

    async def _stream(self, key: str, owner: str, scopes: Scopes, *, dry_run: bool) -> int:
        """Deletes a tenant's entries of a stream."""
        redis, after, count = self._redis.of(key), "-", 0
        while True:
            part: Any = await redis.run("erase", lambda client, at=after: client.xrange(key, at, "+", BATCH))  # type: ignore[misc]
            own = [at for at, fields in part if _is_of(owner, fields.get(b"tenant", b"").decode("utf-8", "replace"))]
            scopes |= {fields[b"scope"].decode() for at, fields in part if at in own and b"scope" in fields}
            count += len(own)
            if own and not dry_run:
                await redis.run("erase", lambda client, gone=own: client.xdel(key, *gone))  # type: ignore[misc]
            if len(part) < BATCH:
                return count
            after = f"({part[-1][0].decode()}"

    async def _labels_of_scopes(self, owner: str, scopes: Scopes, *, dry_run: bool) -> None:
        """Deletes the labels that explain shows. All labels of a scope are of one tenant."""
        listed = self._keys.labelled_scopes
        redis = self._redis.of(listed)
        streams: Any = await redis.run("erase", lambda client: client.zrange(listed, 0, -1))
        for name in streams:
            first: Any = await redis.run("erase", lambda client, key=name: client.xrange(key, count=1))  # type: ignore[misc]
            if not first or not _is_of(owner, first[0][1].get(b"tenant", b"").decode("utf-8", "replace")):
                continue
            scopes.add(name.decode().removeprefix(self._keys.labels_of("")))
            if not dry_run:
                await redis.run("erase", lambda client, key=name: client.zrem(listed, key))  # type: ignore[misc]
                await self._unlink(listed, [name.decode()])

    async def _votes(self, scopes: Scopes, *, dry_run: bool) -> int:
        count = 0
        for part in self._keys.partitions:
            async for names in _scanned_batches(self._redis.of(part.invalidated), part.invalidated, f"{part.votes}*"):
                own = [name for name in names if name.removeprefix(part.votes).rpartition(":")[0] in scopes]
                count += len(own)
                if not dry_run:
                    await self._unlink(part.invalidated, own)
        return count

    async def _condensed(self, owner: str, *, dry_run: bool) -> int:
        home, count = self._keys.condensed(f"{owner}:"), 0
        async for names in _scanned_batches(self._redis.of(home), home, self._keys.condensed(f"{owner}:*")):
            count += len(names)
            if not dry_run:
                await self._unlink(home, names)
        return count

    async def _models(self, scopes: Scopes) -> None:
        for some in _batches(sorted(scopes)):
            await self._unlink(self._keys.quality, [self._keys.quality_of(scope) for scope in some])

    async def _judgement(self, owner: str, labels: int) -> None:
        """Takes the tenant out of the fleet's quality. The keeper then learns again from the labels that are left."""
        for _ in range(TRIES):
            stored = await self._quality.read(0)
            text = _without(owner, stored.text) if stored.text else None
            if text == stored.text and not labels:
                return
            if await self._quality.rewrite(stored.epoch, text):
                return

    async def _names(self, owner: str) -> None:
        """Deletes the invalidation tags that name the tenant. The tag of the erasure stands for them."""
        for part in self._keys.partitions:
            redis, key = self._redis.of(part.invalidated), part.invalidated
            tags = await redis.run("erase", lambda client, key=key: client.hgetall(key))  # type: ignore[misc]
            named = [tag for tag in tags if _is_of(owner, _tenant_in(tag.decode("utf-8", "replace")))]
            if named:
                await redis.run("erase", lambda client, key=key, gone=named: client.hdel(key, *gone))  # type: ignore[misc]

    async def _warm_up_errors(self) -> None:
        """Deletes the errors of all warm-ups: they begin with a question, and do not say whose it is."""
        jobs = self._keys.cache_warm_ups
        queue, redis = self._keys.cache_warm_up("")[1], self._redis.of(jobs)
        async for names in _scanned_batches(redis, jobs, self._keys.cache_warm_up("*")[0]):
            for name in names:
                if name == jobs or name.endswith(queue.rpartition(":")[2]):
                    continue
                fields: Any = await redis.run("erase", lambda client, key=name: client.hgetall(key))  # type: ignore[misc]
                said = [field for field in fields if field.startswith(b"error:")]
                if said:
                    await redis.run("erase", lambda client, key=name, gone=said: client.hdel(key, *gone))  # type: ignore[misc]

    async def _unlink(self, home: str, names: Sequence[str]) -> None:
        for some in _batches(names):
            await self._redis.of(home).run("erase", lambda client, gone=some: client.unlink(*gone))  # type: ignore[misc]


async def _scanned_batches(redis: HealthGated, home: str, pattern: str) -> AsyncIterator[Sequence[str]]:
    async for found in scanned(redis, "erase", home, pattern):
        for some in _batches(found):
            yield some


def _batches(found: Sequence[Any]) -> list[Sequence[Any]]:
    return [found[start : start + BATCH] for start in range(0, len(found), BATCH)]


def _is_of(owner: str, tenant: object) -> bool:
    return isinstance(tenant, str) and tenant != "" and owner_of(tenant) == owner


def _tenant_in(tag: str) -> str:
    kind, _, name = tag.partition(":")
    return name if kind in ("tenant", "corpus") else ""


def _json(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = orjson.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def _without(owner: str, text: bytes) -> bytes:
    """Returns the stored quality without a tenant; unchanged if it does not name the tenant or cannot be read."""
    state = _json(text).get("state")
    if not isinstance(state, dict):
        return text
    parts = {
        name: {tenant: one for tenant, one in state.get(name, {}).items() if not _is_of(owner, tenant)}
        for name in ("by_tenant", "tenants")
    }
    history = [event for event in state.get("history", []) if not _is_of(owner, event.get("tenant"))]
    kept = {**state, **parts, "history": history}
    return text if kept == state else orjson.dumps({**_json(text), "state": kept})
