"""What the fleet knows of its backends: written by the one worker that probes, read by all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from api.model import BackendHealth
from api.redis_store.clock import now_ms
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys

LIFETIME_MS: Final = 60_000
DIGESTS_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000


class BackendBoard:
    """See `ports.HealthBoard`: `rag:backend:<name>`. `urls` are the backends' by their names."""

    def __init__(self, gate: Gates, keys: Keys, urls: Mapping[str, str], worker: str) -> None:
        self._gate = gate.of(keys.backend(""))
        self._keys = keys
        self._urls = {name: _without_password(url) for name, url in urls.items()}
        self._worker = worker

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """See `ports.HealthBoard`."""

        async def write(client: Redis) -> None:
            checked_ms = await now_ms(client)
            async with client.pipeline(transaction=True) as pipe:
                for name, health in found.items():
                    pipe.hset(self._keys.backend(name), mapping=self._fields(name, health, checked_ms))
                    pipe.pexpire(self._keys.backend(name), LIFETIME_MS)
                    if health.reachable:
                        self._write_digests(pipe, name, health.digests)
                await pipe.execute()

        await self._gate.run("backends", write)

    def _write_digests(self, pipe: Pipeline, name: str, digests: Mapping[str, str]) -> None:
        """Apart, and for long: a worker that starts while the backend is down finds the answers of its models."""
        key = self._keys.digests(name)
        pipe.delete(key)
        if digests:
            fields: dict[Any, Any] = dict(digests)
            pipe.hset(key, mapping=fields)
            pipe.pexpire(key, DIGESTS_LIFETIME_MS)

    async def read(self) -> Mapping[str, BackendHealth]:
        """See `ports.HealthBoard`. A backend that was published under another URL is another backend."""

        async def ask(client: Redis) -> list[dict[bytes, bytes]]:
            async with client.pipeline(transaction=False) as pipe:
                for name in self._urls:
                    pipe.hgetall(self._keys.backend(name))
                replies: list[dict[bytes, bytes]] = await pipe.execute()
                return replies

        replies = await self._gate.run("backends", ask)
        read = {name: _texts(fields) for name, fields in zip(self._urls, replies, strict=True)}
        return {name: _health(fields) for name, fields in read.items() if fields.get("url") == self._urls[name]}

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """See `ports.HealthBoard`."""

        async def write(client: Redis) -> None:
            async with client.pipeline(transaction=True) as pipe:
                self._write_digests(pipe, name, digests)
                await pipe.execute()

        await self._gate.run("backends", write)

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]:
        """See `ports.HealthBoard`. `early` is for what the gate runs on recovery, and raises Redis's own errors."""

        async def ask(client: Redis) -> dict[Any, Any]:
            fields: dict[Any, Any] = await client.hgetall(self._keys.digests(name))
            return fields

        return _texts(await (ask(self._gate.client) if early else self._gate.run("backends", ask)))

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


def _health(fields: Mapping[str, str]) -> BackendHealth:
    return BackendHealth(
        reachable=fields.get("reachable") == "1",
        models=frozenset(fields.get("models", "").split()),
        resident=frozenset(fields.get("resident", "").split()),
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
