"""Single flight in Redis: one script per step, by Redis's clock. Messages wake the followers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from api.errors import StoreUnavailable
from api.ports.answer_cache import Claim
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import Reader, Signals, messages, script
from api.single_flight.flight import KEPT_MS, LEASE_MS, FlightMessage, FlightRole, Joined, Record, RenewableClaim
from api.values import FlightKey, Priority


class RedisFlightStore:
    """Flights in Redis.

    `reader` opens a separate client for messages; `signals` are others that it receives. Every method but `claim`
    raises `StoreUnavailable`.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        reader: Reader,
        keys: Keys,
        worker: str,
        signals: Signals = MappingProxyType({}),
    ) -> None:
        self._redis = redis
        self._texts = redis.texts
        self._reader = reader
        self._keys = keys
        self._worker = worker
        self._signals = signals
        self._channel = keys.flight_channel("")
        self._join = self._script("join")
        self._publish = self._script("publish")
        self._end = self._script("end")
        self._abandon = self._script("abandon")
        self._leave = self._script("leave")
        self._renew_lease = self._script("renew")
        self._exclusive = self._script("exclusive")
        self._release = self._script("release")

    def _script(self, operation: str) -> AsyncScript:
        return script(self._redis.client, "stores/flights", operation)

    async def _run(self, called: AsyncScript, keys: Sequence[str], *arguments: str | bytes | int) -> object:
        return await self._redis.of(keys[0]).run("flight", partial(called, keys, arguments))

    def claim(self, key: FlightKey, fence: str) -> Claim:
        """The claim under which the cache stores the leader's answer; no I/O."""
        return Claim(self._keys.flight(*key)[0], fence)

    async def join(
        self, key: FlightKey, asked_ms: int, not_before_ms: int, priority: Priority = Priority.USER
    ) -> Joined:
        """Takes the lead of a flight, becomes a follower, or finds the answer already stored.

        `asked_ms`: when the cache had no answer (0: ignore stored answers). A leader that asked at `not_before_ms` or
        earlier is replaced: its answer has been invalidated since. With `UNKNOWN` any invalidation counts, and Redis
        knows the last one. A user who follows a batch flight promotes it.
        """
        invalidated = self._keys.partition(key.scope).invalidated
        keys = [self._keys.flight(*key)[0], self._keys.cache_entry(*key), invalidated]
        asks = (asked_ms, not_before_ms, priority)
        reply = await self._run(self._join, keys, self._worker, LEASE_MS, self._channel, ":".join(key), *asks)
        assert isinstance(reply, list)
        verdict, fence, *place = (part.decode() for part in reply)
        return Joined(FlightRole(verdict), fence, *place)

    async def publish(self, key: FlightKey, fence: str, bodies: Sequence[str]) -> int | None:
        """Publishes messages to the followers. Returns how many follow, or None if the lead is lost."""
        keys = self._keys.flight(*key)[:2]
        stored = [self._texts.encrypt(keys[1], "body", body) for body in bodies]
        return _number(await self._run(self._publish, keys, fence, self._channel, ":".join(key), KEPT_MS, *stored))

    async def end(self, key: FlightKey, fence: str, body: str) -> bool:
        """Sends the leader's last message and ends the flight. Returns False if another worker has the lead."""
        keys = self._keys.flight(*key)[:2]
        stored = self._texts.encrypt(keys[1], "body", body)
        return bool(await self._run(self._end, keys, fence, self._channel, ":".join(key), KEPT_MS, stored))

    async def abandon(self, key: FlightKey, fence: str) -> int:
        """Ends a flight that has no followers. Returns how many follow."""
        return _number(await self._run(self._abandon, self._keys.flight(*key)[:2], fence)) or 0

    async def leave(self, key: FlightKey, place: str) -> None:
        """Stops following, unless the worker has renewed its lease since `place`."""
        await self._run(self._leave, self._keys.flight(*key)[:1], self._worker, place, self._channel, ":".join(key))

    async def renew_leases(self, leads: Sequence[RenewableClaim]) -> Mapping[FlightKey, int | None]:
        """Renews leads: one round trip per partition.

        Returns how many follow each flight, None for a lost lead. Partitions that are down are missing.
        """
        parts: defaultdict[str, list[RenewableClaim]] = defaultdict(list)
        for held in leads:
            parts[self._keys.partition(held[0].scope).invalidated].append(held)
        found: dict[FlightKey, int | None] = {}
        for home, some in parts.items():
            with suppress(StoreUnavailable):
                redis = self._redis.of(home)
                replies = await redis.run("flight", lambda client, some=some: self._renew_all(client, some))  # type: ignore[misc]
                found |= {key: _number(reply) for (key, *_), reply in zip(some, replies, strict=True)}
        return found

    async def _renew_all(self, client: Redis, leads: Sequence[RenewableClaim]) -> list[object]:
        async with client.pipeline(transaction=False) as pipe:
            for key, fence, again in leads:
                await self._renew_lease([self._keys.flight(*key)[0]], (self._worker, LEASE_MS, fence, int(again)), pipe)
            return list(await pipe.execute())

    async def read(self, key: FlightKey, after: str) -> list[Record]:
        """Reads the messages of a flight after the one with the id `after` (`-`: all)."""
        words, begin = self._keys.flight(*key)[1], after if after == "-" else f"({after}"
        found: Any = await self._redis.of(words).run("flight", lambda client: client.xrange(words, begin))
        return [
            Record(at.decode(), fields[b"fence"].decode(), self._texts.decrypt(words, "body", fields[b"body"]).decode())
            for at, fields in found
        ]

    async def exclusive(self, key: FlightKey) -> Claim | None:
        """Takes the lead of work that has no followers. Returns None if another worker has it."""
        refresh = self._keys.flight(*key)[2]
        fence = await self._run(self._exclusive, [refresh], self._worker, LEASE_MS)
        assert isinstance(fence, bytes)
        return Claim(refresh, fence.decode()) if fence else None

    async def release(self, claim: Claim) -> None:
        """Releases an exclusive lead."""
        await self._run(self._release, [claim.key], claim.fence, 0)

    async def renew(self, claim: Claim) -> None:
        """Renews an exclusive lead."""
        await self._run(self._release, [claim.key], claim.fence, LEASE_MS)

    async def messages(self) -> AsyncIterator[FlightMessage | None]:
        """Yields messages about this worker's flights, and None each time the subscription is established."""
        async for text in messages(self._reader, self._channel + self._worker, self._signals):
            what, _, flight = (text or "").partition(" ")
            yield FlightMessage(what, flight) if text else None


def _number(reply: object) -> int | None:
    assert isinstance(reply, int)
    return None if reply < 0 else reply
