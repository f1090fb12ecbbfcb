"""What the fleet knows about its backends: health, digests of models, and reading speeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms
from api.values import BackendHealth

BACKEND_LIFETIME_MS: Final = 60_000
DIGESTS_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
SPEEDS_LIFETIME_MS: Final = 24 * 3600 * 1000
MAX_SPEEDS: Final = 64
"""Models of a backend whose reading speed is kept."""
MODEL: Final = "model:"
"""Begins the name of a field that has the speed of a model."""


class BackendHealthStore:
    """The health of the backends. One worker probes and writes, all others read. Key: `rag:backend:<name>`.

    `urls`: the URL of each backend, by name. Every method raises `StoreUnavailable`.
    """

    def __init__(self, redis: HealthGatedClients, keys: Keys, urls: Mapping[str, str], worker: str) -> None:
        self._redis = redis.of(keys.backend(""))
        self._keys = keys
        self._urls = {name: _without_password(url) for name, url in urls.items()}
        self._worker = worker

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """Publishes the health of backends, by name."""

        async def write(client: Redis) -> None:
            checked_ms = await now_ms(client)
            async with client.pipeline(transaction=True) as pipe:
                for name, health in found.items():
                    pipe.hset(self._keys.backend(name), mapping=self._fields(name, health, checked_ms))
                    pipe.pexpire(self._keys.backend(name), BACKEND_LIFETIME_MS)
                    if health.reachable:
                        self._write_digests(pipe, name, health.digests)
                await pipe.execute()

        await self._redis.run("backends", write)

    def _write_digests(self, pipe: Pipeline, name: str, digests: Mapping[str, str]) -> None:
        """Writes digests to a key with a longer lifetime.

        A worker that starts while the backend is down can still find the answers of its models.
        """
        key = self._keys.digests(name)
        pipe.delete(key)
        if digests:
            fields: dict[Any, Any] = dict(digests)
            pipe.hset(key, mapping=fields)
            pipe.pexpire(key, DIGESTS_LIFETIME_MS)

    async def read(self) -> Mapping[str, BackendHealth]:
        """Reads what was last published and has not expired, without digests.

        Ignores a backend whose URL has changed.
        """

        async def ask(client: Redis) -> list[dict[bytes, bytes]]:
            async with client.pipeline(transaction=False) as pipe:
                for name in self._urls:
                    pipe.hgetall(self._keys.backend(name))
                replies: list[dict[bytes, bytes]] = await pipe.execute()
                return replies

        replies = await self._redis.run("backends", ask)
        read = {name: _texts(fields) for name, fields in zip(self._urls, replies, strict=True)}
        return {name: _health(fields) for name, fields in read.items() if fields.get("url") == self._urls[name]}

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """Publishes the digests of a backend's models. `publish` does so too, for backends that answer."""

        async def write(client: Redis) -> None:
            async with client.pipeline(transaction=True) as pipe:
                self._write_digests(pipe, name, digests)
                await pipe.execute()

        await self._redis.run("backends", write)

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]:
        """Returns the digests of a backend's models as of its last answer; empty if unknown.

        `early`: for actions of `on_recovery`. Redis's own errors are then raised.
        """

        async def ask(client: Redis) -> dict[Any, Any]:
            fields: dict[Any, Any] = await client.hgetall(self._keys.digests(name))
            return fields

        return _texts(await (ask(self._redis.client) if early else self._redis.run("backends", ask)))

    async def share_speeds(self, learned: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        """Publishes the seconds per prompt token by backend and model. Returns those of the fleet.

        Ignores those of a backend whose URL has changed, and deletes them before it publishes others.
        """

        async def exchange(client: Redis) -> list[dict[bytes, bytes]]:
            for name in [name for name, speeds in learned.items() if speeds]:
                url: Any = await client.hget(self._keys.speeds(name), "url")
                if url not in (None, self._urls[name].encode()):
                    await client.delete(self._keys.speeds(name))
            async with client.pipeline(transaction=False) as pipe:
                for name, speeds in learned.items():
                    if speeds:
                        fields: dict[Any, Any] = {f"{MODEL}{model}": f"{speed:.9f}" for model, speed in speeds.items()}
                        pipe.hset(self._keys.speeds(name), mapping={"url": self._urls[name], **fields})
                        pipe.pexpire(self._keys.speeds(name), SPEEDS_LIFETIME_MS)
                    pipe.hgetall(self._keys.speeds(name))
                replies = [reply for reply in await pipe.execute() if isinstance(reply, dict)]
            for name, reply in zip(learned, replies, strict=True):
                if len(reply) > MAX_SPEEDS + 1:
                    await client.delete(self._keys.speeds(name))
            return replies

        replies = await self._redis.run("backends", exchange)
        read = {name: _texts(fields) for name, fields in zip(learned, replies, strict=True)}
        return {name: _speeds(fields) for name, fields in read.items() if fields.get("url") == self._urls[name]}

    def _fields(self, name: str, health: BackendHealth, checked_ms: int) -> dict[Any, Any]:
        return {
            "url": self._urls[name],
            "reachable": int(health.reachable),
            "models": " ".join(sorted(health.models)),
            "resident": " ".join(sorted(health.resident)),
            "checked_ms": checked_ms,
            "by": self._worker,
        }


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _speeds(fields: Mapping[str, str]) -> dict[str, float]:
    return {name.removeprefix(MODEL): float(value) for name, value in fields.items() if name.startswith(MODEL)}


def _health(fields: Mapping[str, str]) -> BackendHealth:
    return BackendHealth(
        reachable=fields.get("reachable") == "1",
        models=frozenset(fields.get("models", "").split()),
        resident=frozenset(fields.get("resident", "").split()),
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
