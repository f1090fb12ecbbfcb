"""Stores what the fleet has learned about its quality: the state, the models of scopes, and the verifiers.

A backup does not contain the state and the models of scopes: they are learned again from the labels.

The verifiers are in Redis so that workers need no shared file system. Workers read `rag:verifier` every second. It
names the model in use, and they load its files from `rag:verifier:<model>`. Without the hash they use the model of
SEMANTIC_CACHE_VERIFIER_PATH, as after FLUSHALL.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.answer_quality import StoredQuality, VerifierFiles
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import downloaded, now_ms, script, uploaded

STATE_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""How long the state and the models live after they were last written."""
TIERS: Final = ("exact", "semantic", "stale")


class RedisQuality:
    """The store of one worker. Every method raises `StoreUnavailable`. On a cluster all keys but one share a shard."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._redis = redis.of(keys.quality)
        self._counters = redis.of(keys.cache_stats)
        self._keys = keys
        self._worker = worker
        self._read = script(redis.client, "stores/quality_store", "read")
        self._publish = script(redis.client, "stores/quality_store", "publish")
        self._rewrite = script(redis.client, "stores/quality_store", "rewrite")

    async def read(self, known: int) -> StoredQuality:
        """Returns the stored epoch; its text, too, if it is not the one that the reader knows."""
        reply: Any = await self._redis.run("quality", partial(self._read, [self._keys.quality], [known]))
        return StoredQuality(int(reply[0]), reply[1] if len(reply) > 1 else None)

    async def publish(self, after: int, text: bytes, scopes: Mapping[str, bytes]) -> int | None:
        """Replaces the epoch `after`, and writes the models of scopes, in one step. Returns the new epoch.

        Returns None if another epoch is stored, or if this worker has lost the lease.
        """
        keys = [self._keys.quality, self._keys.quality_lease, *map(self._keys.quality_of, scopes)]
        arguments: list[Any] = [
            self._worker,
            after,
            STATE_LIFETIME_MS,
            text,
            self._keys.quality_channel,
            *scopes.values(),
        ]
        reply: Any = await self._redis.run("quality_publish", partial(self._publish, keys, arguments))
        return int(reply) or None

    async def rewrite(self, after: int, text: bytes | None) -> bool:
        """Replaces the state of the epoch `after`; None: there is none. Returns False if another epoch is stored."""
        arguments: list[Any] = [after, STATE_LIFETIME_MS, text or b"", self._keys.quality_channel]
        return bool(await self._redis.run("quality_publish", partial(self._rewrite, [self._keys.quality], arguments)))

    async def of_scopes(self, scopes: Sequence[str]) -> Sequence[bytes | None]:
        """Returns the models of scopes, in order."""

        async def ask(client: Any) -> list[bytes | None]:
            async with client.pipeline(transaction=False) as pipe:
                for scope in scopes:
                    pipe.get(self._keys.quality_of(scope))
                found: list[bytes | None] = await pipe.execute()
                return found

        return await self._redis.run("quality", ask)

    async def now_ms(self) -> int:
        """Returns Redis's clock."""
        return await self._redis.run("quality", now_ms)

    async def served(self) -> Mapping[str, int]:
        """Returns how many answers each tier has ever served."""
        fields = [f"{tier}_hits" for tier in TIERS]
        found: Any = await self._counters.run("quality", lambda client: client.hmget(self._keys.cache_stats, fields))
        return {tier: int(count or 0) for tier, count in zip(TIERS, found, strict=True)}


MODEL_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""Lifetime of the keys. Running workers renew it."""
NAMES: Final = ("model.onnx", "tokenizer.json", "model.json")


class RedisVerifierModels:
    """Stores models and switches the whole fleet at once. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.verifier)
        self._keys = keys
        self._activate = script(redis.client, "stores/quality_store", "activate_verifier")
        self._roll_back = script(redis.client, "stores/quality_store", "roll_back_verifier")

    async def active(self) -> str:
        """Returns the digest of the model in use; empty if it is that of SEMANTIC_CACHE_VERIFIER_PATH."""

        async def ask(client: Redis) -> Any:
            return await client.hget(self._keys.verifier, "active")

        return _text(await self._redis.run("verifier", ask))

    async def read(self, digest: str) -> VerifierFiles | None:
        """Returns the files of a model, or None if they are gone or damaged."""
        archive = await downloaded(self._redis, self._keys.verifier_model(digest))
        files = await asyncio.to_thread(_unpacked, archive) if archive else None
        return files if files is not None and await asyncio.to_thread(lambda: files.digest) == digest else None

    async def activate(self, files: VerifierFiles) -> str:
        """Stores a model, puts it in use on all workers, and returns its digest."""
        digest, archive = files.digest, _packed(files)
        upload = await uploaded(self._redis, self._keys, archive)
        keys = [self._keys.verifier, upload, self._keys.verifier_model(digest)]
        unneeded = await self._redis.run(
            "verifier", lambda client: self._activate(keys, [digest, MODEL_LIFETIME_MS], client)
        )
        if unneeded is None:
            raise StoreUnavailable("The upload took too long.")
        if unneeded:
            await self._redis.run("verifier", lambda client: client.unlink(self._keys.verifier_model(_text(unneeded))))
        return digest

    async def roll_back(self) -> str | None:
        """Exchanges the active model and the one before it. Returns None if no model was ever activated."""
        keys = [self._keys.verifier]
        found = await self._redis.run("verifier", lambda client: self._roll_back(keys, [MODEL_LIFETIME_MS], client))
        return None if found is None else _text(found)

    async def renew(self) -> None:
        """Renews the lifetimes of the models in use and before it."""

        async def renew(client: Redis) -> None:
            digests = await client.hmget(self._keys.verifier, ["active", "previous"])
            async with client.pipeline(transaction=False) as pipe:
                pipe.pexpire(self._keys.verifier, MODEL_LIFETIME_MS)
                for digest in filter(None, digests):
                    pipe.pexpire(self._keys.verifier_model(_text(digest)), MODEL_LIFETIME_MS)
                await pipe.execute()

        await self._redis.run("verifier", renew)


def _packed(files: VerifierFiles) -> bytes:
    """Returns a ZIP archive without compression: weights do not shrink."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        for name, content in zip(NAMES, (files.weights, files.tokenizer, files.info), strict=True):
            written.writestr(name, content)
    return archive.getvalue()


def _unpacked(archive: bytes) -> VerifierFiles | None:
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as read:
            return VerifierFiles(*(read.read(name) for name in NAMES))
    except (zipfile.BadZipFile, KeyError):
        return None


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply or "")
