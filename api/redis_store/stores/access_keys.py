"""Stores API keys: one hash for each key, without its secret. They never expire and Redis never evicts them.

A backup does not contain keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from dataclasses import fields as fields_of
from functools import partial
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis

from api.ports.access import RANKS, FoundKey, KeyRecord, KeyRole, KeySpec
from api.ports.limits import Limits
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

MOST: Final = 10_000
"""Keys that there may be."""
AT_ONCE: Final = 200
"""Keys that one command reads."""
START: Final = b"id:"


class RedisAccessKeys:
    """The store of one worker. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.access_keys)
        self._keys = keys
        made = partial(script, redis.client, "stores/access_keys")
        self._read, self._create, self._used = made("read"), made("create"), made("used")
        self._rotate, self._revoke = made("rotate"), made("revoke")

    def _both(self, key_id: str) -> list[str]:
        return [self._keys.access_keys, self._keys.access_key(key_id)]

    async def read(self, key_id: str) -> FoundKey:
        """Returns the record of a key and the epoch. Raises `StoreUnavailable`."""
        reply: Any = await self._redis.run("access_key", partial(self._read, self._both(key_id), []))
        return FoundKey(int(reply[0]), int(reply[1]), _record(key_id, _paired(reply[2:])))

    async def epoch(self) -> int:
        """Returns the number that grows when a key is rotated or revoked; 0 if there never was one."""
        key = self._keys.access_keys
        reply: Any = await self._redis.run("access_key", lambda client: client.hget(key, "epoch"))
        return int(reply or 0)

    async def create(self, key_id: str, digest: str, spec: KeySpec) -> KeyRecord | None:
        """Stores a key. Returns None if there are too many."""
        fields: dict[str, Any] = {
            "tenant": spec.tenant,
            "role": spec.role,
            "name": spec.name,
            "models": orjson.dumps(spec.models),
            "digest": digest,
            "expires_ms": spec.expires_ms,
            **asdict(spec.limits),
        }
        arguments: list[Any] = [key_id, MOST, *(part for pair in fields.items() for part in pair)]
        created: Any = await self._redis.run("access_key", partial(self._create, self._both(key_id), arguments))
        return KeyRecord(key_id, spec, digest, int(created)) if created else None

    async def rotate(self, key_id: str, digest: str, overlap_ms: int) -> KeyRecord | None:
        """Gives a key another digest. The former one stays valid for `overlap_ms`. Returns None if it is unknown."""
        arguments: list[Any] = [self._keys.access_keys_channel, digest, overlap_ms]
        reply: Any = await self._redis.run("access_key", partial(self._rotate, self._both(key_id), arguments))
        return _record(key_id, _paired(reply))

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """Deletes a key, and returns what it was; None if it is unknown."""
        arguments = [self._keys.access_keys_channel, key_id]
        reply: Any = await self._redis.run("access_key", partial(self._revoke, self._both(key_id), arguments))
        return _record(key_id, _paired(reply))

    async def all(self) -> Sequence[KeyRecord]:
        """Returns every key, oldest first."""
        key = self._keys.access_keys
        made: Any = await self._redis.run("access_key", lambda client: client.hgetall(key))
        by_age = sorted((int(at), name) for name, at in made.items() if name.startswith(START))
        ids = [name.removeprefix(START).decode() for _, name in by_age]
        found: list[KeyRecord] = []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            fields = await self._redis.run("access_key", partial(self._fields, key_ids=some))
            records = (_record(key_id, one) for key_id, one in zip(some, fields, strict=True))
            found += [record for record in records if record is not None]
        return found

    async def _fields(self, client: Redis, key_ids: Sequence[str]) -> list[Mapping[bytes, bytes]]:
        async with client.pipeline(transaction=False) as pipe:
            for key_id in key_ids:
                pipe.hgetall(self._keys.access_key(key_id))
            return await pipe.execute()

    async def used(self, key_ids: Sequence[str]) -> None:
        """Writes that keys were used now."""
        for start in range(0, len(key_ids), AT_ONCE):
            keys = [self._keys.access_key(key_id) for key_id in key_ids[start : start + AT_ONCE]]
            await self._redis.run("access_key", partial(self._used, keys, []))


def _paired(parts: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _record(key_id: str, fields: Mapping[bytes, bytes]) -> KeyRecord | None:
    """Returns None for a key that is gone, or cannot be read because a later release has written it."""
    with suppress(ValueError, KeyError, TypeError):
        role = fields[b"role"].decode()
        if role not in RANKS:
            return None
        spec = KeySpec(
            fields[b"tenant"].decode(),
            cast(KeyRole, role),
            fields[b"name"].decode(),
            int(fields[b"expires_ms"]),
            tuple(map(str, orjson.loads(fields[b"models"]))),
            Limits(*(int(fields.get(one.name.encode(), 0)) for one in fields_of(Limits))),
        )
        return KeyRecord(
            key_id,
            spec,
            fields[b"digest"].decode(),
            int(fields[b"created_ms"]),
            int(fields.get(b"rotated_ms", 0)),
            int(fields.get(b"last_used_ms", 0)),
            fields.get(b"old_digest", b"").decode(),
            int(fields.get(b"old_until_ms", 0)),
        )
    return None
