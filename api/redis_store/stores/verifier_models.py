"""The verifiers of the fleet in Redis, so that workers need no shared file system.

Workers read `rag:verifier` every second. It names the model in use, and they load its files from
`rag:verifier:<model>`. Without the hash they use the model of SEMANTIC_CACHE_VERIFIER_PATH, as after FLUSHALL.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from typing import Any, Final

from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.quality import VerifierFiles
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import downloaded, script, uploaded

LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""Lifetime of the keys. Running workers renew it."""
NAMES: Final = ("model.onnx", "tokenizer.json", "model.json")
FEATURE: Final = "stores/verifier_models"


class RedisVerifierModels:
    """Stores models and switches the whole fleet at once. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys) -> None:
        self._redis = redis.of(keys.verifier)
        self._keys = keys
        self._activate = script(redis.client, FEATURE, "activate")
        self._roll_back = script(redis.client, FEATURE, "roll_back")

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
        unneeded = await self._redis.run("verifier", lambda client: self._activate(keys, [digest, LIFETIME_MS], client))
        if unneeded is None:
            raise StoreUnavailable("The upload took too long.")
        if unneeded:
            await self._redis.run("verifier", lambda client: client.unlink(self._keys.verifier_model(_text(unneeded))))
        return digest

    async def roll_back(self) -> str | None:
        """Exchanges the active model and the one before it. Returns None if no model was ever activated."""
        keys = [self._keys.verifier]
        found = await self._redis.run("verifier", lambda client: self._roll_back(keys, [LIFETIME_MS], client))
        return None if found is None else _text(found)

    async def renew(self) -> None:
        """Renews the lifetimes of the models in use and before it."""

        async def renew(client: Redis) -> None:
            digests = await client.hmget(self._keys.verifier, ["active", "previous"])
            async with client.pipeline(transaction=False) as pipe:
                pipe.pexpire(self._keys.verifier, LIFETIME_MS)
                for digest in filter(None, digests):
                    pipe.pexpire(self._keys.verifier_model(_text(digest)), LIFETIME_MS)
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
