"""Counters of the fleet: added to here, sent to Redis together a moment later.

What is sent together is a batch with a number. Where the reply is lost, the same batch is sent again, and Redis adds it
once. What a killed worker loses is what it counted since the last flush, at most `FLUSH_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from api.errors import StoreUnavailable
from api.redis_store.cache_keys import CacheKeys
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

FLUSH_SECONDS: Final = 0.25
LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
BATCH_MS: Final = 3600 * 1000
"""How long Redis remembers the last batch of a worker: what could be lost for longer may be counted twice."""
BOOKS_MS: Final = 60_000
"""How long what is kept of the entries lives at least; each new entry makes that its own lifetime."""
BATCH: Final = 500
"""Entries that one script is sent."""


class CacheCounters:
    """`rag:stats:cache`, and the uses of entries. The last known totals stand in while Redis is down."""

    def __init__(self, gate: Gates, keys: Keys, worker: str) -> None:
        self._gates = gate
        self._gate = gate.of(keys.cache_stats)
        self._keys = keys
        self._pending: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self._batch: tuple[int, Counter[str]] | None = None
        self._batches = 0
        self._batch_key = keys.cache_stats_batch(worker)
        self._add = script(gate.client, "counters_add")
        self._touch = script(gate.client, "cache_common", "cache_touch")
        self._known: dict[str, int] = {}
        self._flushing = asyncio.Lock()

    @property
    def are_shared(self) -> bool:
        """Whether they reach the fleet now."""
        return self._gate.is_up

    def add(self, name: str, count: int = 1) -> None:
        """Counts; no I/O."""
        if count:
            self._pending[name] += count

    def touch(self, entry: str) -> None:
        """Notes a use of an entry; no I/O."""
        self._touched[entry] += 1

    async def totals(self) -> Mapping[str, int]:
        """The fleet's counts, this worker's own up to this moment among them."""
        await self.flush()
        try:
            raw: Mapping[Any, Any] = await self._gate.run(
                "read_counters", lambda client: client.hgetall(self._keys.cache_stats)
            )
            # What is no whole number was counted by a later release, and is not one of these.
            self._known = {name.decode(): int(value) for name, value in raw.items() if value.isdigit()}
        except StoreUnavailable:
            return Counter(self._known) + self._pending + (self._batch[1] if self._batch else Counter())
        return self._known

    async def flush(self) -> None:
        """Sends what is pending; keeps it for the next time when Redis is down. Cancelled, it still sends."""
        if self._pending or self._batch or self._touched or self._flushing.locked():
            await asyncio.shield(asyncio.create_task(self._flush()))

    async def _flush(self) -> None:
        async with self._flushing:
            with suppress(StoreUnavailable):  # kept, and sent again
                while self._batch or self._pending:
                    await self._send_batch()
            await self._send_touched_all()

    async def _send_batch(self) -> None:
        """One that may have arrived before the next."""
        if self._batch is None:
            self._batches += 1
            self._batch = self._batches, self._pending
            self._pending = Counter()
        number, counts = self._batch
        arguments: list[str | int] = [number, BATCH_MS, LIFETIME_MS]
        for name, count in counts.items():
            arguments += (name, count)
        keys = [self._keys.cache_stats, self._batch_key]
        await self._gate.run("flush_counters", lambda client: self._add(keys, arguments, client))
        self._batch = None

    async def _send_touched_all(self) -> None:
        touched, self._touched = self._touched, Counter()
        for part in self._keys.partitions if touched else ():
            of_part = [(entry, uses) for entry, uses in touched.items() if part.holds(entry)]
            with suppress(StoreUnavailable):  # to lose some uses costs an entry a little of what it is worth, no more
                await self._send_touched(part, of_part)

    async def _send_touched(self, part: CacheKeys, touched: Sequence[tuple[str, int]]) -> None:
        books = part.books
        for start in range(0, len(touched), BATCH):
            batch = touched[start : start + BATCH]
            keys = [*books, *(entry for entry, _ in batch)]
            arguments = [BOOKS_MS, *(uses for _, uses in batch)]
            gate = self._gates.of(books[0])
            await gate.run("touch", lambda client, k=keys, a=arguments: self._touch(k, a, client))  # type: ignore[misc]

    async def keep_flushing(self) -> None:
        """Flushes for ever. A task of the worker's."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()
